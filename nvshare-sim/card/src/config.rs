//! The card's parameters, from the environment of the first process that opens its directory.

use std::path::PathBuf;

/// Physical memory is handed out in blocks of this size: the granularity that `cuMemCreate` reports.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// The most cards that one directory holds.
pub const MAX_CARDS: usize = 8;

/// What every process that uses the cards agrees on. All cards of a directory are alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// How many cards.
    pub cards: u64,
    /// Memory of each, a multiple of [`BLOCK_BYTES`].
    pub card_bytes: u64,
    /// Bandwidth of the link, each way.
    pub link_bytes_per_second: u64,
    /// Time between the end of a transfer and its completion being seen.
    pub link_latency_nanoseconds: u64,
    /// 1: each way of the link has its own clock; 0: both share one.
    pub duplex: u64,
    /// What kernels read and write per second.
    pub device_bytes_per_second: u64,
    /// Memory that a process with a context occupies.
    pub context_bytes: u64,
    /// How many times slower than a copy the faults of managed memory move bytes.
    pub fault_slowdown: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            cards: 1,
            card_bytes: 1 << 30,
            link_bytes_per_second: 1_000_000_000,
            link_latency_nanoseconds: 10_000,
            duplex: 1,
            device_bytes_per_second: 4_000_000_000,
            context_bytes: 4 << 20,
            fault_slowdown: 6,
        }
    }
}

/// A variable that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value}: expected {expected}")]
pub struct ConfigError {
    /// The variable.
    pub name: String,
    /// What it held.
    pub value: String,
    /// What it may hold.
    pub expected: String,
}

impl Config {
    /// Reads the variables that `lookup` knows; the others keep their defaults.
    pub fn parse(lookup: impl Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
        let number =
            |name: &str, default: u64, low: u64, high: u64, expected: &str| -> Result<u64, ConfigError> {
                let Some(value) = lookup(name) else { return Ok(default) };
                match parse_size(&value) {
                    Some(number) if (low..=high).contains(&number) => Ok(number),
                    _ => Err(ConfigError { name: name.into(), value, expected: expected.into() }),
                }
            };
        let base = Config::default();
        let size = "a number of bytes such as 512M or 16G";
        let rate = "bytes per second such as 1000000000 or 12G, at least 1M";
        let mut config = Config {
            cards: number("NVSHARE_SIM_CARDS", base.cards, 1, MAX_CARDS as u64, "a number from 1 to 8")?,
            card_bytes: number(
                "NVSHARE_SIM_CARD_BYTES",
                base.card_bytes,
                8 << 20,
                1 << 40,
                "a number of bytes from 8M to 1024G",
            )?,
            link_bytes_per_second: number(
                "NVSHARE_SIM_LINK_BYTES_PER_SECOND",
                base.link_bytes_per_second,
                1 << 20,
                1 << 50,
                rate,
            )?,
            link_latency_nanoseconds: 1000
                * number("NVSHARE_SIM_LINK_LATENCY_US", 10, 0, 1_000_000, "microseconds from 0 to 1000000")?,
            duplex: number("NVSHARE_SIM_DUPLEX", base.duplex, 0, 1, "0 or 1")?,
            device_bytes_per_second: number(
                "NVSHARE_SIM_DEVICE_BYTES_PER_SECOND",
                base.device_bytes_per_second,
                1 << 20,
                1 << 50,
                rate,
            )?,
            context_bytes: number("NVSHARE_SIM_CONTEXT_BYTES", base.context_bytes, 0, 1 << 40, size)?,
            fault_slowdown: number(
                "NVSHARE_SIM_FAULT_SLOWDOWN",
                base.fault_slowdown,
                1,
                10_000,
                "a factor from 1 to 10000",
            )?,
        };
        config.card_bytes -= config.card_bytes % BLOCK_BYTES;
        Ok(config)
    }

    /// How many blocks each card has.
    pub const fn blocks(&self) -> usize {
        (self.card_bytes / BLOCK_BYTES) as usize
    }
}

/// The directory of the cards: `NVSHARE_SIM_DIR`, or one in `/dev/shm` for this user.
pub fn directory(lookup: impl Fn(&str) -> Option<String>) -> PathBuf {
    lookup("NVSHARE_SIM_DIR").filter(|value| !value.is_empty()).map_or_else(
        || PathBuf::from(format!("/dev/shm/nvshare-sim-{}", rustix::process::getuid().as_raw())),
        PathBuf::from,
    )
}

/// A number with an optional K, M or G (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(name: &'a str, value: &'a str) -> impl Fn(&str) -> Option<String> + use<'a> {
        move |asked| (asked == name).then(|| value.to_owned())
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        assert_eq!(Config::parse(|_| None), Ok(Config::default()));
    }

    #[test]
    fn sizes_take_suffixes_and_are_cut_to_whole_blocks() {
        let config = Config::parse(with("NVSHARE_SIM_CARD_BYTES", "33M")).unwrap();
        assert_eq!((config.card_bytes, config.blocks()), (32 << 20, 16));
        assert_eq!(parse_size("12G"), Some(12 << 30));
        assert_eq!(parse_size("7"), Some(7));
        assert_eq!(parse_size("G"), None);
        assert_eq!(parse_size("99999999999999999G"), None);
    }

    #[test]
    fn nonsense_is_refused_with_the_variable_and_what_was_expected() {
        let error = Config::parse(with("NVSHARE_SIM_CARDS", "none")).unwrap_err().to_string();
        assert_eq!(error, "NVSHARE_SIM_CARDS=none: expected a number from 1 to 8");
        assert!(Config::parse(with("NVSHARE_SIM_DUPLEX", "2")).is_err());
        assert!(Config::parse(with("NVSHARE_SIM_CARD_BYTES", "4M")).is_err());
    }

    #[test]
    fn the_directory_can_be_chosen() {
        assert_eq!(directory(with("NVSHARE_SIM_DIR", "/x/y")), PathBuf::from("/x/y"));
        assert!(directory(|_| None).starts_with("/dev/shm"));
    }
}
