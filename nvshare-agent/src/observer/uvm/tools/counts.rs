//! What a page of counters says, and what was added between two looks.

use nvshare_agent_core::observation::Paged;
use nvshare_common::bytes::Bytes;

/// The counters of one VA space, since it is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Bytes moved to devices.
    pub(super) to_device: u64,
    /// Bytes moved to the host.
    pub(super) to_host: u64,
    /// Faults taken on the host.
    pub(super) cpu_faults: u64,
    /// Faults taken on devices.
    pub(super) faults: u64,
}

impl Counts {
    /// What was added since `before`. The module only adds, and a count may wrap; one that went back says nothing.
    pub(super) fn since(self, before: Counts) -> Paged {
        let added = |now: u64, before: u64| {
            let added = now.wrapping_sub(before);
            if added > u64::MAX / 2 { 0 } else { added }
        };
        Paged {
            faults: added(self.faults, before.faults),
            cpu_faults: added(self.cpu_faults, before.cpu_faults),
            to_device: Bytes(added(self.to_device, before.to_device)),
            to_host: Bytes(added(self.to_host, before.to_host)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(of: u64) -> Counts {
        Counts { to_device: of, to_host: of, cpu_faults: of, faults: of }
    }

    fn paged(of: u64) -> Paged {
        Paged { faults: of, cpu_faults: of, to_device: Bytes(of), to_host: Bytes(of) }
    }

    #[test]
    fn what_was_added_is_told_also_across_the_end_of_the_numbers() {
        assert_eq!(counts(7).since(counts(7)), paged(0));
        assert_eq!(counts(12).since(counts(7)), paged(5));
        assert_eq!(counts(3).since(counts(u64::MAX - 1)), paged(5));
    }

    #[test]
    fn a_count_that_went_back_says_nothing() {
        assert_eq!(counts(6).since(counts(7)), paged(0));
    }

    #[test]
    fn each_count_stands_for_itself() {
        let now = Counts { to_device: 1, to_host: 2, cpu_faults: 3, faults: 4 };
        let added = Paged { faults: 4, cpu_faults: 3, to_device: Bytes(1), to_host: Bytes(2) };
        assert_eq!(now.since(Counts::default()), added);
    }
}
