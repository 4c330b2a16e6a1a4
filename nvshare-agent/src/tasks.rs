//! The tasks and threads of the agent, each with the part that is missing without it: one that ends although nobody asked it
//! to is missed, and says so with the text of its panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tracing::debug;

use crate::health::{Health, Part};

/// What helps against an end that should not come.
const REMEDY: &str = "restart the agent, and please report this with the log";

/// Why an agent ends by itself: it is nothing without this part.
#[derive(Debug, thiserror::Error)]
#[error("the part `{}` ended, which it never should: {why}; please report this with the log", part.name())]
pub struct Failed {
    part: Part,
    why: String,
}

/// Running tasks, in the order in which they are stopped.
#[derive(Debug)]
pub(crate) struct Tasks {
    health: Health,
    running: JoinSet<Option<String>>,
    parts: Vec<(Part, AbortHandle)>,
}

impl Tasks {
    pub(crate) fn new(health: Health) -> Tasks {
        Tasks { health, running: JoinSet::new(), parts: Vec::new() }
    }

    /// Starts a task that never ends by itself.
    pub(crate) fn spawn(&mut self, part: Part, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_saying(part, async move {
            task.await;
            None
        });
    }

    /// The same, for one that can say why it ended all the same.
    pub(crate) fn spawn_saying(
        &mut self,
        part: Part,
        task: impl Future<Output = Option<String>> + Send + 'static,
    ) {
        let handle = self.running.spawn(task);
        self.parts.push((part, handle));
    }

    /// Waits for the end that should not come, of a part without which the agent is nothing. Others that end are missing from
    /// then on.
    pub(crate) async fn failed(&mut self) -> Failed {
        loop {
            let (id, why) = match self.running.join_next_with_id().await {
                Some(Ok((id, why))) => (id, why.unwrap_or_else(|| "it ended".to_owned())),
                Some(Err(error)) => (error.id(), of(error)),
                None => std::future::pending().await,
            };
            let Some(part) = self.take(id) else { continue };
            if matches!(part, Part::Conductor | Part::Clients) {
                return Failed { part, why };
            }
            self.health.ended(part, &format!("{why}; {REMEDY}"));
        }
    }

    /// Waits for the end of a part that was asked to end.
    pub(crate) async fn ended(&mut self, part: Part) {
        while self.parts.iter().any(|(of, task)| *of == part && !task.is_finished())
            && self.running.join_next().await.is_some()
        {}
    }

    /// Stops all of them, one after another.
    pub(crate) async fn stop(mut self) {
        for (part, task) in std::mem::take(&mut self.parts) {
            let start = Instant::now();
            task.abort();
            while !task.is_finished() && self.running.join_next().await.is_some() {}
            debug!(part = part.name(), milliseconds = start.elapsed().as_millis(), "stopped");
        }
    }

    /// Ends the tasks of a part as nothing does that is asked for.
    #[cfg(test)]
    pub(crate) fn end(&self, part: Part) {
        let tasks = self.parts.iter().filter(|(of, _)| *of == part);
        assert!(tasks.inspect(|(_, task)| task.abort()).count() > 0, "{part:?} has no task");
    }

    fn take(&mut self, id: Id) -> Option<Part> {
        let at = self.parts.iter().position(|(_, task)| task.id() == id)?;
        Some(self.parts.remove(at).0)
    }
}

/// Why a task was over.
fn of(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => format!("it panicked: {}", text(&*panic)),
        Err(_) => "it was cancelled".to_owned(),
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> &str {
    let owned = panic.downcast_ref::<String>().map(String::as_str);
    owned.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it does not say why")
}

/// Does this, and says what the panic said in which it ended, if so. Nothing that `body` may have left half done is to be used
/// afterwards.
pub(crate) fn caught<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(|panic| format!("it panicked: {}; {REMEDY}", text(&*panic)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_work() -> Health {
        let health = Health::new();
        for part in Part::ALL {
            health.works(part);
        }
        health
    }

    #[tokio::test]
    async fn a_task_that_ends_is_missing_for_good_with_the_text_of_its_panic() {
        let health = all_work();
        let mut tasks = Tasks::new(health.clone());
        tasks.spawn(Part::Report, async { panic!("out of {}", "ideas") });
        tasks.spawn(Part::Pods, async {});
        tasks.spawn_saying(Part::Admin, async { Some("no socket".to_owned()) });
        tasks.spawn(Part::Pages, std::future::pending());
        // It goes on with the others until one is needed.
        tasks.spawn_saying(Part::Clients, async {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            Some("the socket cannot be waited for".to_owned())
        });
        let failed = tasks.failed().await.to_string();
        assert!(failed.contains("`clients`") && failed.contains("cannot be waited for"), "{failed}");
        let missing = health.readiness().missing;
        let of = |part| &missing.iter().find(|missing| missing.part == part).unwrap().why;
        assert_eq!(missing.len(), 3, "{missing:?}");
        assert!(of(Part::Report).contains("out of ideas") && of(Part::Report).contains("restart the agent"));
        assert!(of(Part::Pods).contains("it ended") && of(Part::Admin).contains("no socket"));
        health.works(Part::Report);
        assert_eq!(health.readiness().missing.len(), 3, "what it said before it ended comes late");
    }

    #[tokio::test]
    async fn stopping_ends_all_in_their_order_and_nothing_is_missed() {
        let health = all_work();
        let mut tasks = Tasks::new(health.clone());
        let (say, mut said) = tokio::sync::mpsc::unbounded_channel();
        for part in [Part::Plugin, Part::Clients, Part::Pages] {
            let last = Last(part, say.clone());
            tasks.spawn(part, async move {
                let _last = last;
                std::future::pending::<()>().await;
            });
        }
        tokio::task::yield_now().await;
        tasks.stop().await;
        for part in [Part::Plugin, Part::Clients, Part::Pages] {
            assert_eq!(said.try_recv(), Ok(part));
        }
        assert!(health.readiness().ready);
    }

    /// Says that it was dropped.
    struct Last(Part, tokio::sync::mpsc::UnboundedSender<Part>);

    impl Drop for Last {
        fn drop(&mut self) {
            let _ = self.1.send(self.0);
        }
    }

    #[test]
    fn a_panic_is_caught_with_its_text() {
        assert_eq!(caught(|| 7), Ok(7));
        assert!(caught(|| panic!("as if it were wrong")).unwrap_err().contains("as if it were wrong"));
    }
}
