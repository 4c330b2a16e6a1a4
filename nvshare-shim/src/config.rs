//! What the environment says, read once, in one place. A value that makes no sense is said once on stderr with what was
//! expected, and the default is used: nothing here ever stops the application.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use nvshare_common::protocol;

use crate::stderr;

/// The block: the unit of fingerprints, and what every extent is a multiple of.
pub const BLOCK_BYTES: u64 = 2 << 20;

/// The largest extent that is chosen by itself: handles of this size cost little per byte (on an H200 2 MiB
/// ones cost twenty times as much), and the first and last one of a swap, which overlap with nothing, are still short.
pub const LARGEST_EXTENT: u64 = 256 << 20;

/// How much is said; each level includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something works less well than it could, and what to do about it.
    Warn,
    /// The story of the process: connected, stopped, resumed.
    Info,
    /// Every swap.
    Debug,
}

impl Level {
    /// The level of that name.
    pub fn parse(text: &str) -> Option<Level> {
        Some(match text.to_ascii_lowercase().as_str() {
            "error" => Level::Error,
            "warn" => Level::Warn,
            "info" => Level::Info,
            "debug" => Level::Debug,
            _ => return None,
        })
    }
}

/// All settings of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `NVSHARE_DISABLE`: hooks pass everything through.
    pub disabled: bool,
    /// `NVSHARE_SOCKET`: where the agent listens.
    pub socket: PathBuf,
    /// `NVSHARE_LOG`: what goes to stderr.
    pub log: Level,
    /// `NVSHARE_EXTENT_BYTES`: the largest piece that moves at once; else a share of the device, at most
    /// [`LARGEST_EXTENT`].
    pub extent_bytes: Option<u64>,
    /// `NVSHARE_DEBUG_SWAP_EVERY`: swap everything out and in this often; a test tool.
    pub debug_swap_every: Option<Duration>,
    /// `NVSHARE_DEBUG_SWAP_BY`: a socket by which a test orders swaps; see `link::forced`.
    pub debug_swap_by: Option<i32>,
    /// `NVSHARE_AGENT_GONE_AFTER`: how long the agent may be away before a stopped client helps itself.
    pub agent_gone_after: Duration,
    /// `NVSHARE_SWAP_BESIDE_DMA`: move memory although a device is open that may use it by DMA (RDMA, GDRCopy).
    pub swap_beside_dma: bool,
    /// `NVSHARE_IPC=plain`: what `cuMemAlloc` gives is the driver's own and never moves, so that processes without the library can
    /// open it by CUDA IPC.
    pub plain: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            disabled: false,
            socket: protocol::SOCKET.into(),
            log: Level::Warn,
            extent_bytes: None,
            debug_swap_every: None,
            debug_swap_by: None,
            agent_gone_after: Duration::from_secs(30),
            swap_beside_dma: false,
            plain: false,
        }
    }
}

/// The settings of this process.
pub fn get() -> &'static Config {
    static CONFIG: OnceLock<Config> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let (config, complaints) = Config::read(|name| std::env::var_os(name));
        for complaint in complaints {
            stderr::say(format_args!("{complaint}"));
        }
        config
    })
}

impl Config {
    /// The settings that `variable` describes, and what was wrong with them.
    pub fn read(variable: impl Fn(&str) -> Option<OsString>) -> (Config, Vec<String>) {
        let mut config = Config::default();
        let mut complaints = Vec::new();
        let mut one = |name: &str, expected: &str, take: &mut dyn FnMut(&str) -> Option<()>| {
            let Some(value) = variable(name).filter(|value| !value.is_empty()) else { return };
            if value.to_str().and_then(|value| take(value.trim())).is_none() {
                complaints.push(format!(
                    "{name}={} makes no sense: expected {expected}; using the default",
                    value.display()
                ));
            }
        };
        one("NVSHARE_DISABLE", "0 or 1", &mut |value| match value {
            "0" | "1" => {
                config.disabled = value == "1";
                Some(())
            }
            _ => None,
        });
        one("NVSHARE_SWAP_BESIDE_DMA", "0 or 1", &mut |value| match value {
            "0" | "1" => {
                config.swap_beside_dma = value == "1";
                Some(())
            }
            _ => None,
        });
        one("NVSHARE_IPC", "shared or plain", &mut |value| {
            config.plain = ["shared", "plain"].iter().position(|known| *known == value)? == 1;
            Some(())
        });
        one("NVSHARE_LOG", "error, warn, info or debug", &mut |value| {
            config.log = Level::parse(value)?;
            Some(())
        });
        one("NVSHARE_SOCKET", "the absolute path of the agent's socket, at most 107 bytes", &mut |value| {
            config.socket = (value.starts_with('/') && value.len() <= 107).then(|| value.into())?;
            Some(())
        });
        one("NVSHARE_EXTENT_BYTES", "a multiple of 2M from 2M to 1G, such as 64M", &mut |value| {
            let bytes = parse_bytes(value)?;
            let fits = bytes.is_multiple_of(BLOCK_BYTES) && (BLOCK_BYTES..=1 << 30).contains(&bytes);
            config.extent_bytes = Some(fits.then_some(bytes)?);
            Some(())
        });
        one("NVSHARE_DEBUG_SWAP_EVERY", "a time such as 50ms or 2s, at least 1ms", &mut |value| {
            config.debug_swap_every = Some(parse_duration(value)?);
            Some(())
        });
        one("NVSHARE_DEBUG_SWAP_BY", "the number of an inherited descriptor, above 2", &mut |value| {
            config.debug_swap_by = Some(value.parse().ok().filter(|descriptor| *descriptor > 2)?);
            Some(())
        });
        one("NVSHARE_AGENT_GONE_AFTER", "a time such as 30s, at least 1ms", &mut |value| {
            config.agent_gone_after = parse_duration(value)?;
            Some(())
        });
        (config, complaints)
    }
}

/// `64M`, `1G`, `4096`: powers of 1024.
fn parse_bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.char_indices().last()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// `50ms`, `2s`, at least a millisecond and at most a day.
fn parse_duration(text: &str) -> Option<Duration> {
    let (digits, unit) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s')?, 1000),
    };
    let millis = digits.parse::<u64>().ok()?.checked_mul(unit)?;
    (1..=86_400_000).contains(&millis).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> (Config, Vec<String>) {
        Config::read(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn an_empty_environment_means_the_defaults() {
        assert_eq!(read(&[]), (Config::default(), vec![]));
        assert_eq!(read(&[("NVSHARE_LOG", "")]), (Config::default(), vec![]));
    }

    #[test]
    fn every_variable_is_understood() {
        let (config, complaints) = read(&[
            ("NVSHARE_DISABLE", "1"),
            ("NVSHARE_SOCKET", "/tmp/agent.sock"),
            ("NVSHARE_LOG", "debug"),
            ("NVSHARE_EXTENT_BYTES", "16M"),
            ("NVSHARE_DEBUG_SWAP_EVERY", "50ms"),
            ("NVSHARE_DEBUG_SWAP_BY", "7"),
            ("NVSHARE_AGENT_GONE_AFTER", "2s"),
            ("NVSHARE_SWAP_BESIDE_DMA", "1"),
            ("NVSHARE_IPC", "plain"),
        ]);
        assert!(complaints.is_empty(), "{complaints:?}");
        assert_eq!(
            config,
            Config {
                disabled: true,
                socket: "/tmp/agent.sock".into(),
                log: Level::Debug,
                extent_bytes: Some(16 << 20),
                debug_swap_every: Some(Duration::from_millis(50)),
                debug_swap_by: Some(7),
                agent_gone_after: Duration::from_secs(2),
                swap_beside_dma: true,
                plain: true,
            }
        );
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_setting_or_is_complained_of(text in "\\PC*", which in 0..7_usize) {
            let name = [
                "NVSHARE_DISABLE", "NVSHARE_SOCKET", "NVSHARE_LOG", "NVSHARE_EXTENT_BYTES", "NVSHARE_DEBUG_SWAP_EVERY",
                "NVSHARE_AGENT_GONE_AFTER", "NVSHARE_SWAP_BESIDE_DMA",
            ][which];
            let (config, complaints) = read(&[(name, &text)]);
            proptest::prop_assert!(complaints.is_empty() || config == Config::default());
        }
    }

    #[test]
    fn nonsense_is_named_with_what_was_expected_and_changes_nothing() {
        for (name, value) in [
            ("NVSHARE_DISABLE", "yes please"),
            ("NVSHARE_SOCKET", "agent.sock"),
            ("NVSHARE_LOG", "loud"),
            ("NVSHARE_EXTENT_BYTES", "3M"),
            ("NVSHARE_EXTENT_BYTES", "99999999999999999999G"),
            ("NVSHARE_DEBUG_SWAP_EVERY", "0ms"),
            ("NVSHARE_DEBUG_SWAP_EVERY", "often"),
            ("NVSHARE_DEBUG_SWAP_BY", "2"),
        ] {
            let (config, complaints) = read(&[(name, value)]);
            assert_eq!(config, Config::default());
            assert_eq!(complaints.len(), 1);
            assert!(complaints[0].contains(name) && complaints[0].contains("expected"), "{complaints:?}");
        }
    }
}
