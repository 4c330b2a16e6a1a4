//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Fills device memory with a pattern, computes over all of it again and again, and verifies every byte each time.
/// Ends with status 2 when a byte was wrong, with 1 when it could not do its work.
#[derive(Parser, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "flags of a command line, independent of one another")]
#[command(name = "nvshare-workload", version)]
pub(crate) struct Options {
    /// How much memory: bytes, or with a suffix K, M, G (powers of 1024).
    #[arg(long, default_value = "256M", value_parser = bytes)]
    pub(crate) bytes: u64,
    /// In how many allocations.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=65536))]
    pub(crate) buffers: u64,
    /// How many iterations.
    #[arg(long, default_value_t = 10, conflicts_with = "seconds")]
    pub(crate) iterations: u64,
    /// For how long, instead of a number of iterations.
    #[arg(long)]
    pub(crate) seconds: Option<f64>,
    /// Until this file is there, instead of a number of iterations.
    #[arg(long, conflicts_with_all = ["iterations", "seconds"])]
    pub(crate) until: Option<PathBuf>,
    /// How many times a step goes over each buffer before it goes on to the next.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) passes: u64,
    /// After how many launches the host waits for the device; 0: only when it needs a result.
    #[arg(long, default_value_t = 0)]
    pub(crate) queue: u64,
    /// What the host does between two iterations: nothing (`0`), pause for a time (`20ms`), or idle for a share of the
    /// time (`50%`), measured by the fastest iteration so far.
    #[arg(long, default_value = "0")]
    pub(crate) pause: Pause,
    /// How the memory is allocated.
    #[arg(long, value_enum, default_value_t = Memory::Device)]
    pub(crate) memory: Memory,
    /// Which share of the buffers is only read (0 to 1): weights.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub(crate) read_only_share: f64,
    /// Which device.
    #[arg(long, default_value_t = 0)]
    pub(crate) device: i32,
    /// Makes the contents differ from those of other workloads.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// How many places of each buffer the host copies and compares after each iteration.
    #[arg(long, default_value_t = 4)]
    pub(crate) samples: u64,
    /// Takes turns with others that name the same file: works only while it holds the lock on it.
    #[arg(long)]
    pub(crate) turns: Option<PathBuf>,
    /// After how long it hands over the lock.
    #[arg(long, default_value = "1s", value_parser = duration)]
    pub(crate) quantum: Duration,
    /// Writes a line on standard error after the fill and after each iteration.
    #[arg(long)]
    pub(crate) progress: bool,
    /// Waits for a line on standard input between the fill and the first iteration.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Measures the link both ways at once instead, and prints the rate each way as JSON.
    #[arg(long)]
    pub(crate) link: bool,
    /// Is that other process of `--memory ipc`.
    #[arg(long, hide = true)]
    pub(crate) opener: bool,
    /// Prints the report as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// The kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Memory {
    /// `cuMemAlloc`
    Device,
    /// `cuMemAllocManaged`
    Managed,
    /// `cuMemAllocAsync`
    #[value(alias = "pool")]
    StreamOrdered,
    /// `cuMemAllocFromPoolAsync`, of a pool that may be exported
    ExportablePool,
    /// `cuMemCreate` and `cuMemMap`, as frameworks' allocators do
    Vmm,
    /// `cuMemAlloc`, computed over by graphs that allocate what they work in, and free it again
    Graph,
    /// `cuMemAlloc`, shared by CUDA IPC with a process of the workload's own that opens each buffer after each step, verifies it,
    /// adds to it, and closes it
    Ipc,
}

/// What happens between iterations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pause {
    For(Duration),
    Share(f64),
}

impl Pause {
    /// How long to pause when the fastest iteration took `iteration`.
    pub(crate) fn after(self, iteration: Duration) -> Duration {
        match self {
            Pause::For(time) => time,
            Pause::Share(share) => iteration.mul_f64(share / (1.0 - share)),
        }
    }
}

impl FromStr for Pause {
    type Err = String;
    fn from_str(text: &str) -> Result<Pause, String> {
        let Some(percent) = text.strip_suffix('%') else { return duration(text).map(Pause::For) };
        match percent.parse::<f64>() {
            Ok(percent) if (0.0..=99.0).contains(&percent) => Ok(Pause::Share(percent / 100.0)),
            _ => Err(format!("`{text}` is not a share of the time: expected 0% to 99%")),
        }
    }
}

fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size: expected a number, or one with K, M or G behind it");
    let (digits, shift) = match text.chars().last() {
        Some('K' | 'k') => (&text[..text.len() - 1], 10),
        Some('M' | 'm') => (&text[..text.len() - 1], 20),
        Some('G' | 'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).filter(|bytes| *bytes >= 8).ok_or_else(wrong)
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: expected for example 20ms, 1s, or 0");
    let (number, unit) = match text {
        "0" => return Ok(Duration::ZERO),
        _ if text.ends_with("us") => (&text[..text.len() - 2], 1e-6),
        _ if text.ends_with("ms") => (&text[..text.len() - 2], 1e-3),
        _ if text.ends_with('s') => (&text[..text.len() - 1], 1.0),
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err(format!("`{text}` is not a share: expected a number from 0 to 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_read_and_nonsense_is_refused() {
        assert_eq!(bytes("384M"), Ok(384 << 20));
        assert_eq!(bytes("1000"), Ok(1000));
        assert!(bytes("M").is_err() && bytes("7").is_err() && bytes("99999999999G").is_err());
        assert_eq!(duration("20ms"), Ok(Duration::from_millis(20)));
        assert!(duration("20").is_err() && duration("-1s").is_err());
        assert!("100%".parse::<Pause>().is_err());
    }

    #[test]
    fn half_idle_pauses_as_long_as_it_works() {
        let pause: Pause = "50%".parse().unwrap();
        assert_eq!(pause.after(Duration::from_millis(80)), Duration::from_millis(80));
    }
}
