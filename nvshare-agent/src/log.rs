//! How the log looks, and that it does not repeat itself: a warning is written once per cause, however often the cause
//! comes back within some minutes.

use std::collections::HashMap;
use std::fmt::{Debug, Write};
use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

/// A cause is worth a line again after this long.
const AGAIN: Duration = Duration::from_mins(10);
/// How many causes are remembered.
const CAUSES: usize = 1024;
/// Fields that differ each time and are no part of a cause.
const FLEETING: [&str; 2] = ["session", "ticket"];

/// Changes the filter of the log that was begun.
type ChangeFilter = dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync;

static FILTER: OnceLock<Box<ChangeFilter>> = OnceLock::new();

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

/// What is logged, and how.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Which log lines: error, warn, info, debug, trace, or a filter such as info,nvshare_agent_core=debug
    #[arg(long, value_name = "FILTER", env = "NVSHARE_AGENT_LOG", default_value = "info", value_parser = filter)]
    pub log: String,

    /// How log lines look
    #[arg(long, value_enum, value_name = "FORMAT", env = "NVSHARE_AGENT_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Which log lines: a level, or a filter of `tracing`.
pub fn filter(text: &str) -> Result<String, String> {
    match text.parse::<EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("expected error, warn, info, debug, trace or a filter of these ({error})")),
    }
}

/// Begins to write log lines to standard error. The filter was parsed once already, when the command line was read.
pub fn begin(options: &Options) {
    let filter = EnvFilter::builder().parse_lossy(&options.log);
    // Whoever reads the log may go away: its internal errors would be printed to the same broken pipe, and panic.
    let lines = fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match options.log_format {
        LogFormat::Text => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal()).with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = FILTER.set(Box::new(move |filter| handle.reload(filter)));
            lines.finish().with(OncePerCause::default()).init();
        }
        LogFormat::Json => {
            let lines = lines.json().with_filter_reloading();
            let handle = lines.reload_handle();
            let _ = FILTER.set(Box::new(move |filter| handle.reload(filter)));
            lines.finish().with(OncePerCause::default()).init();
        }
    }
}

/// Writes the lines that `filter` says from now on. It was parsed once already, when it came.
pub fn follow(filter: &str) {
    // Nothing is there to be changed before the log has begun.
    if let Some(change) = FILTER.get()
        && let Err(error) = change(EnvFilter::builder().parse_lossy(filter))
    {
        tracing::error!(%error, "the log's filter cannot be changed");
    }
}

/// Lets a warning pass only if the same one, with the same fields, was not written lately. Other levels pass.
#[derive(Debug, Default)]
struct OncePerCause {
    written: Mutex<HashMap<String, Instant>>,
}

impl OncePerCause {
    fn is_news(&self, cause: String, now: Instant) -> bool {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if written.get(&cause).is_some_and(|at| now.duration_since(*at) < AGAIN) {
            return false;
        }
        if written.len() >= CAUSES {
            written.retain(|_, at| now.duration_since(*at) < AGAIN);
        }
        // So many causes within minutes are one cause; their lines are better than nothing.
        if written.len() < CAUSES {
            written.insert(cause, now);
        }
        true
    }
}

impl<S: Subscriber> Layer<S> for OncePerCause {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() != Level::WARN {
            return true;
        }
        let mut cause = Cause(event.metadata().target().to_owned());
        event.record(&mut cause);
        self.is_news(cause.0, Instant::now())
    }
}

/// A warning as text, without what differs each time.
struct Cause(String);

impl Visit for Cause {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if !FLEETING.contains(&field.name()) {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "\n{}={value:?}", field.name());
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io;
    use std::sync::Arc;

    use tracing::{info, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What the log has of `story`.
    pub(crate) fn written(story: impl FnOnce()) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = fmt().with_writer(move || writer.clone()).finish().with(OncePerCause::default());
        tracing::subscriber::with_default(subscriber, story);
        let text = lines.0.lock().unwrap();
        String::from_utf8(text.clone()).unwrap()
    }

    #[test]
    fn a_warning_is_written_once_per_cause_and_news_always() {
        let text = written(|| {
            for session in 0..3 {
                warn!(session, pid = 7, why = "nonsense", "session closed");
                info!("client connected");
            }
            warn!(session = 9, pid = 8, why = "nonsense", "session closed");
        });
        assert_eq!(text.matches("session closed").count(), 2, "{text}");
        assert_eq!(text.matches("client connected").count(), 3, "{text}");
    }

    #[test]
    fn a_cause_is_news_again_after_a_while_and_causes_do_not_pile_up() {
        let once = OncePerCause::default();
        let now = Instant::now();
        assert!(once.is_news("a".to_owned(), now) && !once.is_news("a".to_owned(), now + AGAIN / 2));
        assert!(once.is_news("a".to_owned(), now + AGAIN));
        for number in 0..2 * CAUSES {
            assert!(once.is_news(number.to_string(), now + AGAIN));
        }
        assert!(once.written.lock().unwrap().len() <= CAUSES);
    }
}
