//! The shim's own few lines on stderr, `NVSHARE_LOG` deciding which. One `write` per line, so that lines of several
//! threads and processes do not mix.

use std::fmt;

use crate::config::{self, Level};
use crate::stderr;

/// Whether lines of `level` are wanted.
pub fn wanted(level: Level) -> bool {
    level <= config::get().log
}

/// Writes one line, where that harms nobody ([`stderr`]).
pub fn line(level: Level, text: fmt::Arguments<'_>) {
    if wanted(level) {
        stderr::say(text);
    }
}

macro_rules! error {
    ($($text:tt)*) => { $crate::log::line($crate::config::Level::Error, format_args!($($text)*)) };
}
macro_rules! warning {
    ($($text:tt)*) => { $crate::log::line($crate::config::Level::Warn, format_args!($($text)*)) };
}
macro_rules! info {
    ($($text:tt)*) => { $crate::log::line($crate::config::Level::Info, format_args!($($text)*)) };
}
macro_rules! debug {
    ($($text:tt)*) => { $crate::log::line($crate::config::Level::Debug, format_args!($($text)*)) };
}
pub(crate) use {debug, error, info, warning};
