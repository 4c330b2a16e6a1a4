//! Why there is no more host memory for shadows, for people. The text stays as it is for as long as its cause does: each new
//! text is a line in the log, and how much is missing changes with every look; that figure is published beside it.

use std::mem::{Discriminant, discriminant};

use nvshare_common::units::Bytes;

use crate::hostmem::HostError;

/// The cause and its text, if there is one.
#[derive(Debug, Default)]
pub(super) struct Lack(Option<(Cause, String)>);

#[derive(Debug, PartialEq)]
enum Cause {
    Budget,
    Node(Discriminant<HostError>),
}

impl Lack {
    /// All of `budget` is handed out.
    pub(super) fn budget(&mut self, budget: Bytes) {
        let why = format!(
            "host memory for shadows is missing: --host-memory ({budget}) is used up; raise it, or run less"
        );
        self.0 = Some((Cause::Budget, why));
    }

    /// An arena could not be made. Says whether that is news.
    pub(super) fn node(&mut self, why: &HostError) -> bool {
        let cause = Cause::Node(discriminant(why));
        let news = self.0.as_ref().is_none_or(|(known, _)| *known != cause);
        if news {
            self.0 = Some((cause, why.to_string()));
        }
        news
    }

    /// Everybody has what he may need.
    pub(super) fn over(&mut self) {
        self.0 = None;
    }

    /// The text.
    pub(super) fn why(&self) -> Option<String> {
        self.0.as_ref().map(|(_, why)| why.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Health, Part};
    use crate::log::tests::written;

    fn no_room(free: Bytes) -> HostError {
        HostError::NoRoom { bytes: Bytes::GIB, free, margin: Bytes::GIB, whose: "the node's" }
    }

    #[test]
    fn a_lack_of_another_sum_is_not_another_line_in_the_log_and_another_cause_is() {
        let log = written(|| {
            let (mut lack, health) = (Lack::default(), Health::new());
            let tell = |lack: &Lack| health.missing(Part::HostMemory, &lack.why().unwrap());
            for free in 1..5 {
                assert_eq!(lack.node(&no_room(Bytes(free << 20))), free == 1);
                tell(&lack);
            }
            lack.budget(Bytes(64 << 30));
            tell(&lack);
            lack.over();
            assert_eq!(lack.why(), None);
        });
        assert_eq!(log.matches("running without a part").count(), 2, "{log}");
        assert!(
            log.contains("1 MiB of host memory are available") && log.contains("(64 GiB) is used up"),
            "{log}"
        );
    }
}
