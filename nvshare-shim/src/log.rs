//! The shim's own few lines on stderr, `NVSHARE_LOG` deciding which. One `write` per line, so that lines of several
//! threads and processes do not mix.

use std::fmt;

mod stderr;

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

/// Whether lines of `level` are wanted.
pub fn wanted(level: Level) -> bool {
    level <= crate::config::get().log
}

/// Writes one line, where that harms nobody ([`stderr`]).
pub fn line(level: Level, text: fmt::Arguments<'_>) {
    if wanted(level) {
        say(text);
    }
}

/// The same whatever is wanted.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    stderr::write(format!("nvshare[{}]: {text}\n", std::process::id()).as_bytes());
}

macro_rules! error {
    ($($text:tt)*) => { $crate::log::line($crate::log::Level::Error, format_args!($($text)*)) };
}
macro_rules! warning {
    ($($text:tt)*) => { $crate::log::line($crate::log::Level::Warn, format_args!($($text)*)) };
}
macro_rules! info {
    ($($text:tt)*) => { $crate::log::line($crate::log::Level::Info, format_args!($($text)*)) };
}
macro_rules! debug {
    ($($text:tt)*) => { $crate::log::line($crate::log::Level::Debug, format_args!($($text)*)) };
}
pub(crate) use {debug, error, info, warning};
