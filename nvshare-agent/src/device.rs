//! The devices of the node and what is really free on them: NVML, read on threads of its own (one that keeps the rhythm,
//! one for each card), because a call into the driver can take milliseconds, or for ever. Without NVML the thread keeps
//! trying, and each report says what is missing.

mod cards;
mod nvml;
mod options;

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nvshare_agent_core::reading::Report;

use self::cards::{Answer, Cards};
pub use self::options::Options;

use self::nvml::{DeviceError, Library};
use crate::clock;
use crate::tasks::caught;

/// How often the devices are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rhythm {
    /// Memory moves, or somebody waits for some.
    Fast,
    /// Clients are at work and fit.
    Calm,
    /// Nothing happens. Whatever needs a reading asks for one.
    #[default]
    Rest,
}

impl Rhythm {
    /// Time between two readings, or two attempts to load NVML.
    const fn pause(self) -> Duration {
        match self {
            Rhythm::Fast => Duration::from_millis(100),
            Rhythm::Calm => Duration::from_millis(500),
            Rhythm::Rest => Duration::from_secs(2),
        }
    }
}

/// How long a report waits for all cards. What comes later is reported by itself.
const ROUND: Duration = Duration::from_millis(100);
/// The shortest time between two rounds while a card does not answer: whoever waits for it goes on asking.
const BUSY_GAP: Duration = Duration::from_millis(100);
/// A card that has not answered for this long is a problem.
const SILENCE: Duration = Duration::from_secs(2);
/// While a card is lost NVML starts anew this often, because only then it finds that the card is back. That takes long:
/// the other cards must not wait for it at every reading.
const RENEWAL: Duration = Duration::from_secs(10);

/// Asks the reading thread for more than its calm rhythm. The thread ends when all of these are gone.
#[derive(Clone, Debug)]
pub struct Poll(Arc<Line>);

#[derive(Debug)]
struct Line(Sender<Event>);

impl Drop for Line {
    fn drop(&mut self) {
        let _ = self.0.send(Event::End);
    }
}

/// What the reading thread hears.
enum Event {
    Now,
    Every(Rhythm),
    Answer(Answer),
    End,
}

impl Poll {
    /// Reads at once: before memory is granted.
    pub fn now(&self) {
        // Without its thread (it could not be started) there are no devices, and nothing to read.
        let _ = self.0.0.send(Event::Now);
    }

    /// Reads in this rhythm from now on.
    pub fn every(&self, rhythm: Rhythm) {
        let _ = self.0.0.send(Event::Every(rhythm));
    }
}

/// Starts reading with the NVML at `library` (a name for the loader, or a path) and gives each report to `publish`,
/// the first one before long.
/// A thread that ends in a panic says so to `ended`.
pub fn start(
    library: OsString,
    publish: impl FnMut(Report) + Send + 'static,
    ended: impl FnOnce(String) + Send + 'static,
) -> std::io::Result<Poll> {
    read_with(move || Ok(Arc::new(nvml::load(&library)?)), publish, ended)
}

fn read_with(
    load: impl FnMut() -> Result<Arc<dyn Library>, DeviceError> + Send + 'static,
    publish: impl FnMut(Report) + Send + 'static,
    ended: impl FnOnce(String) + Send + 'static,
) -> std::io::Result<Poll> {
    let (events, heard) = mpsc::channel();
    let cards = Cards::new(events.clone());
    let readers = Readers { load, publish, cards, heard, library: None, loaded: Instant::now(), most: 0 };
    thread::Builder::new().name("devices".to_owned()).spawn(move || {
        if let Err(why) = caught(|| readers.run()) {
            ended(why);
        }
    })?;
    Ok(Poll(Arc::new(Line(events))))
}

/// The thread that keeps the rhythm.
struct Readers<L, P> {
    load: L,
    publish: P,
    cards: Cards,
    heard: Receiver<Event>,
    library: Option<Arc<dyn Library>>,
    loaded: Instant,
    /// The most devices that it ever listed.
    most: u32,
}

/// Nobody wants readings any more.
struct Ended;

impl<L, P> Readers<L, P>
where
    L: FnMut() -> Result<Arc<dyn Library>, DeviceError>,
    P: FnMut(Report),
{
    fn run(mut self) {
        let mut rhythm = Rhythm::default();
        while let Ok(()) = self.round(&mut rhythm).and_then(|()| self.rest(&mut rhythm)) {}
    }

    /// Asks all cards and reports what they say.
    fn round(&mut self, rhythm: &mut Rhythm) -> Result<(), Ended> {
        let mut report = Report { began: clock::now(), complete: true, ..Report::default() };
        let mut lost = false;
        match self.count() {
            Ok(count) => {
                lost |= count < self.most;
                self.most = self.most.max(count);
                let library = self.library.clone().expect("it has counted");
                let mut open = 0;
                for index in 0..count {
                    match self.cards.ask(index, &library) {
                        Ok(asked) => {
                            open += u32::from(asked);
                            report.complete &= asked;
                        }
                        Err(error) => {
                            report.problem = Some(format!("no thread to read GPU {index}: {error}"));
                        }
                    }
                }
                let until = Instant::now() + ROUND;
                while open > 0 {
                    match self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
                        // This reading answers all that ask during it, too: they look at when it began.
                        Ok(Event::Now) => {}
                        Ok(Event::Every(other)) => *rhythm = other,
                        Ok(Event::Answer(answer)) if answer.began < report.began => self.late(answer),
                        Ok(Event::Answer(answer)) => {
                            open -= 1;
                            self.cards.answered(answer.index);
                            match answer.said {
                                Ok(reading) => report.devices.push(reading),
                                Err(error) => {
                                    lost |= error.lost();
                                    report.problem = Some(error.to_string());
                                }
                            }
                        }
                        Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => return Err(Ended),
                        Err(RecvTimeoutError::Timeout) => break,
                    }
                }
                report.complete &= open == 0;
                report.devices.sort_by_key(|reading| reading.index);
            }
            Err(error) => report.problem = Some(error.to_string()),
        }
        if let Some(silent) = self.cards.silent(SILENCE) {
            report.problem = Some(silent.to_string());
        }
        // NVML finds new devices and recovered ones only when it starts; so an empty or broken one is not kept.
        let empty = report.devices.is_empty() && report.complete;
        if empty || (lost && self.loaded.elapsed() >= RENEWAL) {
            self.library = None;
        }
        (self.publish)(report);
        Ok(())
    }

    /// Waits until it is time for the next round.
    fn rest(&mut self, rhythm: &mut Rhythm) -> Result<(), Ended> {
        let read = Instant::now();
        let mut asked = false;
        loop {
            let pause = match (asked, self.cards.any_busy()) {
                (true, false) => return Ok(()),
                (true, true) => BUSY_GAP,
                (false, _) => rhythm.pause(),
            };
            match self.heard.recv_timeout(pause.saturating_sub(read.elapsed())) {
                Ok(Event::Now) => asked = true,
                Ok(Event::Every(other)) => *rhythm = other,
                Ok(Event::Answer(answer)) => self.late(answer),
                Err(RecvTimeoutError::Timeout) => return Ok(()),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => return Err(Ended),
            }
        }
    }

    /// A card answered after its round was over.
    fn late(&mut self, answer: Answer) {
        self.cards.answered(answer.index);
        if let Ok(reading) = answer.said {
            let devices = vec![reading];
            (self.publish)(Report { began: answer.began, devices, complete: false, problem: None });
        }
    }

    fn count(&mut self) -> Result<u32, DeviceError> {
        let library = if let Some(library) = &self.library {
            library
        } else {
            self.loaded = Instant::now();
            self.library.insert((self.load)()?)
        };
        library.count().inspect_err(|_| self.library = None)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use nvshare_agent_core::reading::Reading;
    use nvshare_common::bytes::Bytes;
    use nvshare_common::ids::DeviceId;

    use super::*;

    /// Two cards, of which the second hangs while it is told to.
    struct Two(Arc<AtomicBool>);

    impl Library for Two {
        fn count(&self) -> Result<u32, DeviceError> {
            Ok(2)
        }

        fn read(&self, index: u32) -> Result<Reading, DeviceError> {
            while index == 1 && self.0.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(1));
            }
            Ok(Reading {
                device: DeviceId([index as u8; 16]),
                index,
                name: "card".into(),
                total: Bytes::GIB,
                used: Bytes::ZERO,
                link: None,
                per_process: BTreeMap::new(),
            })
        }
    }

    #[test]
    fn a_card_that_hangs_keeps_nobody_from_reading_the_others() {
        let hangs = Arc::new(AtomicBool::new(true));
        let (reports, received) = mpsc::channel();
        let library: Arc<dyn Library> = Arc::new(Two(Arc::clone(&hangs)));
        let poll = read_with(
            move || Ok(Arc::clone(&library)),
            move |report| {
                let _ = reports.send(report);
            },
            |why| panic!("{why}"),
        )
        .unwrap();
        poll.every(Rhythm::Fast);
        let next = || received.recv_timeout(Duration::from_secs(20)).unwrap();
        for _ in 0..3 {
            let report = next();
            let read: Vec<u32> = report.devices.iter().map(|reading| reading.index).collect();
            assert_eq!((read, report.complete), (vec![0], false));
        }
        let silent = loop {
            if let Some(problem) = next().problem {
                break problem;
            }
        };
        assert!(silent.contains("GPU 1 has not answered"), "{silent}");
        hangs.store(false, Ordering::Release);
        let late = loop {
            let report = next();
            if report.devices.iter().any(|reading| reading.index == 1) {
                break report;
            }
        };
        assert_eq!(late.devices.len(), 1);
        assert!(!late.complete);
        let both = loop {
            let report = next();
            if report.complete {
                break report;
            }
        };
        assert_eq!((both.devices.len(), both.problem), (2, None));
    }

    #[test]
    fn a_missing_nvml_is_reported_with_the_remedy_and_tried_again() {
        let (reports, received) = mpsc::channel();
        let poll = start(
            "/nowhere/libnvidia-ml.so.1".into(),
            move |report| {
                let _ = reports.send(report);
            },
            |why| panic!("{why}"),
        )
        .unwrap();
        for _ in 0..2 {
            let report = received.recv_timeout(Duration::from_secs(20)).unwrap();
            assert!(report.devices.is_empty() && report.complete);
            let problem = report.problem.unwrap();
            assert!(
                problem.contains("/nowhere/libnvidia-ml.so.1") && problem.contains("--nvml"),
                "{problem}"
            );
            poll.now();
        }
    }

    #[test]
    fn the_thread_ends_with_the_last_poll() {
        let (reports, received) = mpsc::channel();
        let poll = start(
            "/nowhere".into(),
            move |report| {
                let _ = reports.send(report);
            },
            |why| panic!("{why}"),
        )
        .unwrap();
        drop(poll);
        let ended = loop {
            match received.recv_timeout(Duration::from_secs(20)) {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert_eq!(ended, RecvTimeoutError::Disconnected);
    }

    #[test]
    fn a_thread_that_panics_says_so_and_polling_it_harms_nobody() {
        let (says, said) = mpsc::channel();
        let publish = |_| panic!("nobody expected this report");
        let poll = read_with(
            || Err(DeviceError::NoDevice { library: String::new() }),
            publish,
            move |why| says.send(why).unwrap(),
        )
        .unwrap();
        let why = said.recv_timeout(Duration::from_secs(20)).unwrap();
        assert!(why.contains("nobody expected this report"), "{why}");
        poll.now();
    }
}
