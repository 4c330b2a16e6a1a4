//! The cards that are lost: which of those that were read answer no more. Each is told once when it is lost, however NVML
//! shows that, and once when it is back.

use std::collections::BTreeMap;

use nvshare_agent_core::reading::Report;
use nvshare_common::ids::DeviceId;
use tracing::{info, warn};

/// What to do about a card that is lost.
const REMEDY: &str = "check the kernel log for Xid lines and `nvidia-smi -L`; a card that fell off the bus needs a reset \
                      (`nvidia-smi --gpu-reset -i INDEX`) or a reboot; the other cards go on";

/// What was read so far.
#[derive(Debug, Default)]
pub(crate) struct LostCards {
    cards: BTreeMap<DeviceId, Card>,
    problem: Option<String>,
}

#[derive(Debug)]
struct Card {
    index: u32,
    lost: bool,
}

/// News of the cards.
#[derive(Debug, PartialEq)]
enum Line {
    Lost {
        gpu: u32,
        uuid: DeviceId,
        why: String,
    },
    Back {
        gpu: u32,
        uuid: DeviceId,
    },
    /// One that was never read.
    Unread(String),
    Read(usize),
}

impl LostCards {
    /// Tells what is new in a report.
    pub(crate) fn call(&mut self, report: &Report) {
        for line in self.lines(report) {
            match line {
                Line::Lost { gpu, uuid, why } => {
                    warn!(gpu, %uuid, why, remedy = REMEDY.replace("INDEX", &gpu.to_string()), "a card is lost");
                }
                Line::Back { gpu, uuid } => info!(gpu, %uuid, "a card that was lost is back"),
                Line::Unread(why) => warn!(why, "a device cannot be read"),
                Line::Read(devices) => info!(devices, "devices are read"),
            }
        }
    }

    fn lines(&mut self, report: &Report) -> Vec<Line> {
        // A card that has not answered yet is not lost; one that goes on so is a problem.
        if !report.complete && report.problem.is_none() {
            return Vec::new();
        }
        let changed = report.problem != self.problem;
        self.problem.clone_from(&report.problem);
        // That nothing at all is read is told as a part of the agent that is missing.
        if report.devices.is_empty() {
            return Vec::new();
        }
        let mut lines = Vec::new();
        for reading in &report.devices {
            let card = self.cards.entry(reading.device).or_insert(Card { index: reading.index, lost: false });
            if std::mem::take(&mut card.lost) {
                lines.push(Line::Back { gpu: reading.index, uuid: reading.device });
            }
            card.index = reading.index;
        }
        let reads = |uuid: &DeviceId| report.devices.iter().any(|reading| reading.device == *uuid);
        for (uuid, card) in self.cards.iter_mut().filter(|(uuid, card)| !card.lost && !reads(uuid)) {
            card.lost = true;
            let why = report.problem.clone().unwrap_or_else(|| "NVML does not list it any more".to_owned());
            lines.push(Line::Lost { gpu: card.index, uuid: *uuid, why });
        }
        // The problem of a card that is lost was told with it.
        if changed && self.cards.values().all(|card| !card.lost) {
            let read = Line::Read(report.devices.len());
            lines.push(report.problem.clone().map_or(read, Line::Unread));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::moment::Moment;
    use nvshare_agent_core::reading::Reading;

    use super::*;
    use nvshare_common::bytes::Bytes;

    const FIRST: DeviceId = DeviceId([1; 16]);
    const SECOND: DeviceId = DeviceId([2; 16]);

    fn report(cards: &[(u32, DeviceId)], problem: Option<&str>) -> Report {
        let reading = |&(index, device): &(u32, DeviceId)| Reading {
            device,
            index,
            name: "NVIDIA H200".to_owned(),
            total: Bytes::GIB,
            used: Bytes::ZERO,
            link: None,
            per_process: BTreeMap::new(),
        };
        let devices = cards.iter().map(reading).collect();
        Report { began: Moment(1), devices, complete: true, problem: problem.map(str::to_owned) }
    }

    const LOST: &str = "NVML cannot read GPU 1";

    #[test]
    fn a_lost_card_is_told_once_however_nvml_shows_it_and_once_when_it_is_back() {
        let mut cards = LostCards::default();
        let both = report(&[(0, FIRST), (1, SECOND)], None);
        assert_eq!(cards.lines(&both), []);
        let lost = Line::Lost { gpu: 1, uuid: SECOND, why: LOST.to_owned() };
        assert_eq!(cards.lines(&report(&[(0, FIRST)], Some(LOST))), [lost]);
        assert_eq!(cards.lines(&report(&[(0, FIRST)], Some(LOST))), []);
        assert_eq!(cards.lines(&report(&[(0, FIRST)], None)), [], "NVML started again and lists one card");
        assert_eq!(cards.lines(&both), [Line::Back { gpu: 1, uuid: SECOND }]);
        assert_eq!(cards.lines(&both), []);
        let unlisted = Line::Lost { gpu: 0, uuid: FIRST, why: "NVML does not list it any more".to_owned() };
        assert_eq!(cards.lines(&report(&[(0, SECOND)], None)), [unlisted]);
    }

    #[test]
    fn a_card_that_never_answered_is_told_with_its_problem() {
        let mut cards = LostCards::default();
        let one = |problem| report(&[(0, FIRST)], problem);
        assert_eq!(cards.lines(&one(Some(LOST))), [Line::Unread(LOST.to_owned())]);
        assert_eq!(cards.lines(&one(Some(LOST))), []);
        assert_eq!(cards.lines(&one(None)), [Line::Read(1)]);
    }

    #[test]
    fn where_nothing_is_read_nothing_is_said_here() {
        let mut cards = LostCards::default();
        cards.lines(&report(&[(0, FIRST)], None));
        assert_eq!(cards.lines(&report(&[], Some("NVML does not start"))), []);
        assert_eq!(cards.lines(&report(&[(0, FIRST)], None)), [Line::Read(1)]);
    }
}
