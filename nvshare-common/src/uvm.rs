//! What NVIDIA's module for managed memory tells in `uvm_perf_event_notify`: where its fields lie, by driver, and what
//! an event means. The eBPF programs read by this table, the agent chooses the row and reads the sums.

/// How many VA spaces, and how many processes with some, are followed at once.
pub const SPACES: u32 = 4096;

/// The ring in which the ends of processes are told whose counters are held: some hundred fit.
pub const ENDINGS_BYTES: u32 = 4096;

/// The longest piece that one event tells of: the module's block of managed memory. More is no event of this layout.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// The words of a [`Layout`].
pub const LAYOUT_WORDS: usize = 5;

/// Where the fields of an event lie, in bytes, and the numbers of the two kinds of events that count. Seen in the public
/// source of the kernel modules, x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The kind: a page fault.
    pub fault: u32,
    /// The kind: memory moved.
    pub migration: u32,
    /// Of a fault: the processor that took it (4 bytes, 0: a CPU).
    pub processor_at: u32,
    /// Of a migration: where to (4 bytes, 0: the host).
    pub to_at: u32,
    /// Of a migration: how many bytes (8 bytes).
    pub bytes_at: u32,
}

/// The known drivers, by the first number of their version.
const DRIVERS: [(core::ops::RangeInclusive<u32>, Layout); 4] = [
    (515..=525, Layout { fault: 5, migration: 6, processor_at: 16, to_at: 16, bytes_at: 32 }),
    (530..=545, Layout { fault: 6, migration: 7, processor_at: 16, to_at: 16, bytes_at: 32 }),
    (550..=575, Layout { fault: 6, migration: 7, processor_at: 16, to_at: 16, bytes_at: 40 }),
    (580..=595, Layout { fault: 6, migration: 7, processor_at: 8, to_at: 16, bytes_at: 40 }),
];

/// What one event adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A device took a page fault.
    Fault,
    /// So many bytes moved to a device.
    ToDevice(u64),
    /// So many bytes moved to the host.
    ToHost(u64),
    /// A CPU took a page fault: what it moved is told by itself.
    Nothing,
}

/// The sums of one process, as the map of the eBPF programs has them; a plain word each, added to atomically.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Page faults taken by devices.
    pub faults: u64,
    /// Bytes moved to devices.
    pub to_device: u64,
    /// Bytes moved to the host.
    pub to_host: u64,
}

/// Events and insertions that came to nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Faults and migrations of VA spaces that nobody saw begin.
    pub unknown: u64,
    /// VA spaces and processes for which there was no room.
    pub refused: u64,
    /// Events that could not be read, or cannot be: the layout is wrong.
    pub unreadable: u64,
}

impl Layout {
    /// The layout of a driver, by its version (`580.159.04`, with or without the end of the line); `None` for one that
    /// nobody has looked at, and for what is no version.
    pub fn of_version(version: &str) -> Option<Layout> {
        let mut parts = version.trim_ascii().split('.');
        let whole = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        let first = parts.next().filter(|part| whole(part))?.parse().ok()?;
        if !(1..=2).contains(&parts.clone().count()) || !parts.all(whole) {
            return None;
        }
        DRIVERS.iter().find(|(drivers, _)| drivers.contains(&first)).map(|(_, layout)| *layout)
    }

    /// As the map that hands it to the programs has it.
    pub const fn to_words(self) -> [u32; LAYOUT_WORDS] {
        [self.fault, self.migration, self.processor_at, self.to_at, self.bytes_at]
    }

    /// See [`Layout::to_words`].
    pub const fn from_words(words: [u32; LAYOUT_WORDS]) -> Layout {
        let [fault, migration, processor_at, to_at, bytes_at] = words;
        Layout { fault, migration, processor_at, to_at, bytes_at }
    }

    /// Whether events of this kind are counted at all.
    #[inline]
    pub const fn counts(&self, kind: u32) -> bool {
        kind == self.fault || kind == self.migration
    }

    /// What an event of a kind that [counts](Layout::counts) adds. `word` and `long` read 4 and 8 bytes at an
    /// offset. `None` if they cannot, or what is there is no event.
    #[inline]
    pub fn step(
        &self,
        kind: u32,
        word: impl Fn(u32) -> Option<u32>,
        long: impl Fn(u32) -> Option<u64>,
    ) -> Option<Step> {
        if kind == self.fault {
            let processor = word(self.processor_at)?;
            return Some(if processor == 0 { Step::Nothing } else { Step::Fault });
        }
        let to = word(self.to_at)?;
        let bytes = long(self.bytes_at)?;
        if bytes == 0 || bytes > BLOCK_BYTES {
            return None;
        }
        Some(if to == 0 { Step::ToHost(bytes) } else { Step::ToDevice(bytes) })
    }
}

impl Usage {
    /// What was added since `before`.
    #[must_use]
    pub const fn since(self, before: Usage) -> Usage {
        Usage {
            faults: self.faults.saturating_sub(before.faults),
            to_device: self.to_device.saturating_sub(before.to_device),
            to_host: self.to_host.saturating_sub(before.to_host),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An event as the module would have it in memory.
    fn event(fields: &[(u32, u64, usize)]) -> [u8; 64] {
        let mut bytes = [0; 64];
        for (at, value, length) in fields {
            bytes[*at as usize..][..*length].copy_from_slice(&value.to_le_bytes()[..*length]);
        }
        bytes
    }

    fn step(layout: Layout, kind: u32, event: [u8; 64]) -> Option<Step> {
        let word = |at| Some(u32::from_le_bytes(event[at as usize..][..4].try_into().unwrap()));
        let long = |at| Some(u64::from_le_bytes(event[at as usize..][..8].try_into().unwrap()));
        layout.step(kind, word, long)
    }

    #[test]
    fn a_driver_is_read_by_the_row_of_its_first_number() {
        let row = |version: &str| {
            let layout = Layout::of_version(version)?;
            Some(DRIVERS.iter().position(|(_, known)| *known == layout).unwrap())
        };
        for (version, expected) in [
            ("515.43.04", 0),
            ("525.147.05", 0),
            ("530.30.02", 1),
            ("535.261.03", 1),
            ("545.29.06", 1),
            ("550.54.15", 2),
            ("555.58", 2),
            ("575.64\n", 2),
            ("580.159.04\n", 3),
            ("595.10", 3),
        ] {
            assert_eq!(row(version), Some(expected), "{version}");
        }
    }

    #[test]
    fn an_unknown_driver_and_what_is_no_version_have_no_layout() {
        for version in [
            "",
            "\n",
            "510.47.03",
            "514.99",
            "527.1",
            "548.0",
            "577.1",
            "596.1",
            "600.1",
            "580",
            "580.",
            ".580.1",
            "580.a",
            "580.1.2.3",
            "-580.1",
            "+580.1",
            "99999999999.1",
            "580 .1",
            "N/A",
        ] {
            assert_eq!(Layout::of_version(version), None, "{version:?}");
        }
    }

    #[test]
    fn faults_of_devices_count_and_those_of_cpus_do_not() {
        for (_, layout) in DRIVERS {
            let by = |processor| step(layout, layout.fault, event(&[(layout.processor_at, processor, 4)]));
            assert_eq!(by(1), Some(Step::Fault), "{layout:?}");
            assert_eq!(by(0), Some(Step::Nothing), "{layout:?}");
        }
    }

    #[test]
    fn moved_bytes_are_told_apart_by_where_they_go() {
        for (_, layout) in DRIVERS {
            let moved = |to, bytes| {
                step(layout, layout.migration, event(&[(layout.to_at, to, 4), (layout.bytes_at, bytes, 8)]))
            };
            assert_eq!(moved(0, 4096), Some(Step::ToHost(4096)), "{layout:?}");
            assert_eq!(moved(2, BLOCK_BYTES), Some(Step::ToDevice(BLOCK_BYTES)), "{layout:?}");
            assert_eq!(moved(2, BLOCK_BYTES + 1), None, "{layout:?}");
            assert_eq!(moved(2, 0), None, "{layout:?}");
        }
    }

    #[test]
    fn what_cannot_be_read_adds_nothing() {
        let (_, layout) = &DRIVERS[0];
        assert_eq!(layout.step(layout.fault, |_| None, |_| Some(1)), None);
        assert_eq!(layout.step(layout.migration, |_| Some(1), |_| None), None);
        assert!(!layout.counts(layout.migration + 1));
    }

    #[test]
    fn a_layout_survives_its_words() {
        for (_, layout) in DRIVERS {
            assert_eq!(Layout::from_words(layout.to_words()), layout);
        }
    }
}
