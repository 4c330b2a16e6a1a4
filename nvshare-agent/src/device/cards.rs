//! A thread for each card: a call into the driver of one that hangs keeps nobody from reading the others. A card that is
//! still busy with the last question is not asked again, and how long that has been so is known.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::reading::Reading;

use super::Event;
use super::nvml::{DeviceError, Library};
use crate::clock;

/// What one card said.
pub(super) struct Answer {
    /// Which, by NVML's number.
    pub(super) index: u32,
    /// When it was asked.
    pub(super) began: Moment,
    /// What.
    pub(super) said: Result<Reading, DeviceError>,
}

struct Card {
    asks: Sender<Arc<dyn Library>>,
    busy: Option<Instant>,
}

/// All of them. Their threads end with this, or as soon as they come back from the driver.
pub(super) struct Cards {
    cards: BTreeMap<u32, Card>,
    answers: Sender<Event>,
}

impl Cards {
    pub(super) fn new(answers: Sender<Event>) -> Cards {
        Cards { cards: BTreeMap::new(), answers }
    }

    /// Asks a card, unless it has not answered the last time; says whether it was asked.
    pub(super) fn ask(&mut self, index: u32, library: &Arc<dyn Library>) -> std::io::Result<bool> {
        if !self.cards.contains_key(&index) {
            let (asks, asked) = mpsc::channel::<Arc<dyn Library>>();
            let answers = self.answers.clone();
            thread::Builder::new().name(format!("card {index}")).spawn(move || {
                for library in asked {
                    let began = clock::now();
                    let said = library.read(index);
                    drop(library);
                    if answers.send(Event::Answer(Answer { index, began, said })).is_err() {
                        return;
                    }
                }
            })?;
            self.cards.insert(index, Card { asks, busy: None });
        }
        let card = self.cards.get_mut(&index).expect("it is there by now");
        if card.busy.is_some() {
            return Ok(false);
        }
        card.busy = Some(Instant::now());
        // Its thread lives as long as this end does.
        Ok(card.asks.send(Arc::clone(library)).is_ok())
    }

    /// A card answered.
    pub(super) fn answered(&mut self, index: u32) {
        if let Some(card) = self.cards.get_mut(&index) {
            card.busy = None;
        }
    }

    /// The first of those that have not answered for so long.
    pub(super) fn silent(&self, silence: Duration) -> Option<DeviceError> {
        let silent = |busy: &Instant| busy.elapsed() >= silence;
        let mut cards = self.cards.iter();
        let (index, _) = cards.find(|(_, card)| card.busy.as_ref().is_some_and(silent))?;
        Some(DeviceError::Silent { index: *index, silence })
    }

    /// Whether one has not answered yet.
    pub(super) fn any_busy(&self) -> bool {
        self.cards.values().any(|card| card.busy.is_some())
    }
}
