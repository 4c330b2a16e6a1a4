//! The streams of each context: who waits for whom without being told, and the default stream of each thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::ThreadId;

use cudarc::driver::sys::CUresult;

use super::stream::{Kind, Stream};
use crate::call::Outcome;
use crate::context::Context;
use crate::context::green::Green;

/// The streams of a context. Its lock orders all submissions, so that the legacy stream's implicit waits are exact.
#[derive(Default)]
pub(crate) struct Siblings(Mutex<Streams>);

/// What they are.
#[derive(Default)]
pub(crate) struct Streams {
    /// The legacy default stream.
    pub(super) legacy: Option<Arc<Stream>>,
    /// The default streams of threads.
    per_thread: HashMap<ThreadId, Arc<Stream>>,
    /// Streams that the application made.
    made: Vec<Weak<Stream>>,
}

/// Those of each context that is not destroyed, by its number.
static ALL: RwLock<Option<HashMap<u64, Arc<Siblings>>>> = RwLock::new(None);

impl Siblings {
    /// Those of a context; one that was destroyed has none.
    pub(super) fn of(context: &Context) -> Arc<Siblings> {
        let all = ALL.read().unwrap_or_else(PoisonError::into_inner);
        all.as_ref().and_then(|all| all.get(&context.id)).cloned().unwrap_or_default()
    }

    /// What they are, and the right to submit.
    pub(super) fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Streams {
    /// Remembers a stream that the application made.
    fn keep(&mut self, stream: Weak<Stream>) {
        self.made.retain(|stream| stream.strong_count() > 0);
        self.made.push(stream);
    }

    /// All streams that still exist.
    pub(super) fn all(&self) -> Vec<Arc<Stream>> {
        let made = self.made.iter().filter_map(Weak::upgrade);
        self.legacy.iter().cloned().chain(self.per_thread.values().cloned()).chain(made).collect()
    }
}

/// A context was made: it gets its default stream.
pub(super) fn open(context: &Arc<Context>) {
    let siblings = Arc::new(Siblings::default());
    let mut all = ALL.write().unwrap_or_else(PoisonError::into_inner);
    all.get_or_insert_default().insert(context.id, Arc::clone(&siblings));
    drop(all);
    let legacy = Stream::new(context, Kind::Legacy, 0, 0);
    context.add(legacy.as_queue());
    siblings.lock().legacy = Some(legacy);
}

/// A context is gone: so are its streams.
pub(super) fn close(context: &Context) {
    let mut all = ALL.write().unwrap_or_else(PoisonError::into_inner);
    let siblings = all.as_mut().and_then(|all| all.remove(&context.id));
    drop(all);
    let streams = siblings.map(|siblings| std::mem::take(&mut *siblings.lock()));
    for stream in streams.iter().flat_map(Streams::all) {
        stream.close();
    }
}

/// A stream that the application made is one of its context from here on.
pub(crate) fn keep(stream: &Arc<Stream>) {
    stream.context.add(stream.as_queue());
    stream.siblings.lock().keep(Arc::downgrade(stream));
}

/// The legacy default stream of a context.
pub(super) fn legacy(context: &Context) -> Outcome<Arc<Stream>> {
    Siblings::of(context).lock().legacy.clone().ok_or(CUresult::CUDA_ERROR_CONTEXT_IS_DESTROYED)
}

/// The streams of a green context that still exist.
pub(crate) fn of_green(green: &Arc<Green>) -> Vec<Arc<Stream>> {
    let mut streams = Siblings::of(&green.primary).lock().all();
    streams.retain(|stream| stream.green.as_ref().is_some_and(|other| Arc::ptr_eq(other, green)));
    streams
}

/// The calling thread's default stream in `context`.
pub(super) fn of_thread(context: &Arc<Context>) -> Arc<Stream> {
    let thread = std::thread::current().id();
    let siblings = Siblings::of(context);
    let mut streams = siblings.lock();
    if let Some(stream) = streams.per_thread.get(&thread) {
        return Arc::clone(stream);
    }
    let stream = Stream::new(context, Kind::PerThread, 0, 0);
    context.add(stream.as_queue());
    streams.per_thread.insert(thread, Arc::clone(&stream));
    drop(streams);
    // Where the thread is ending already nobody takes the stream away before the context goes.
    let _ = OWN.try_with(|own| own.borrow_mut().push((thread, Arc::downgrade(&siblings))));
    stream
}

thread_local! {
    static OWN: RefCell<Own> = const { RefCell::new(Own(Vec::new())) };
}

/// The contexts in which a thread has a default stream: it goes with the thread, after its work.
struct Own(Vec<(ThreadId, Weak<Siblings>)>);

impl Own {
    fn push(&mut self, of: (ThreadId, Weak<Siblings>)) {
        self.0.push(of);
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        for (thread, siblings) in &self.0 {
            let Some(siblings) = siblings.upgrade() else { continue };
            let mut streams = siblings.lock();
            if let Some(stream) = streams.per_thread.remove(thread) {
                // While it has work it is still waited for.
                streams.keep(Arc::downgrade(&stream));
                drop(streams);
                stream.close();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::work::{HostCall, Submitted, Work, submit};
    use super::*;
    use crate::completion::Completion;

    /// A context with its default stream, without a card.
    fn context() -> Arc<Context> {
        let context = Context::new(0, 0, None);
        open(&context);
        context
    }

    fn made(context: &Arc<Context>, kind: Kind) -> Arc<Stream> {
        let stream = Stream::new(context, kind, 0, 0);
        keep(&stream);
        stream
    }

    /// Work that is not over before the sender says so.
    struct Held(std::sync::mpsc::Sender<()>, Arc<Completion>);

    fn hold(stream: &Arc<Stream>) -> Held {
        #![expect(unsafe_code, reason = "a host function gets a pointer")]
        unsafe extern "C" fn wait(argument: *mut std::ffi::c_void) {
            // SAFETY: `hold` made it for this call alone.
            let told = unsafe { Box::from_raw(argument.cast::<std::sync::mpsc::Receiver<()>>()) };
            let _ = told.recv();
        }
        let (tell, told) = std::sync::mpsc::channel();
        let argument = Box::into_raw(Box::new(told)) as usize;
        let work = Work::Host(HostCall { function: wait, argument });
        let Ok(Submitted::Running(done)) = submit(stream, work) else { panic!("it is not captured") };
        Held(tell, done)
    }

    fn nothing(stream: &Arc<Stream>) -> Arc<Completion> {
        stream.enqueue((Work::Nothing, None), &[], false)
    }

    #[test]
    fn the_legacy_stream_and_the_blocking_ones_wait_for_each_other_and_for_no_others() {
        let context = context();
        let legacy = legacy(&context).expect("the default stream");
        let [one, two] = [(); 2].map(|()| made(&context, Kind::Blocking));
        let free = made(&context, Kind::NonBlocking);
        let held = hold(&one);
        assert!(nothing(&two).finished().is_some(), "blocking streams do not wait for each other");
        assert!(nothing(&free).finished().is_some());
        let behind = nothing(&legacy);
        let behind_that = nothing(&two);
        assert!(nothing(&free).finished().is_some());
        assert_eq!((held.1.finished(), behind.finished(), behind_that.finished()), (None, None, None));
        held.0.send(()).expect("it waits");
        let ends = [held.1.wait(), behind.wait(), behind_that.wait()];
        assert!(ends.is_sorted(), "{ends:?}");
        close(&context);
    }

    #[test]
    fn work_of_a_stream_that_nobody_holds_any_more_is_still_waited_for() {
        let context = context();
        let stream = made(&context, Kind::NonBlocking);
        let held = hold(&stream);
        stream.close();
        drop(stream);
        assert_eq!(context.unfinished().len(), 1);
        held.0.send(()).expect("it waits");
        held.1.wait();
        close(&context);
    }

    #[test]
    fn a_thread_has_a_stream_of_its_own_in_each_context_and_takes_it_along() {
        let contexts = [context(), context()];
        let own = of_thread(&contexts[0]);
        assert!(Arc::ptr_eq(&own, &of_thread(&contexts[0])));
        assert!(!Arc::ptr_eq(&own, &of_thread(&contexts[1])));
        let there = |context: &Arc<Context>| Siblings::of(context).lock().all().len();
        let other = std::thread::scope(|scope| {
            let other = scope.spawn(|| (of_thread(&contexts[0]).id, there(&contexts[0])));
            other.join().expect("the other thread")
        });
        assert!(other.0 != own.id && other.1 == 3, "{other:?}");
        assert_eq!(there(&contexts[0]), 2, "the other's went with it");
        for context in &contexts {
            close(context);
        }
        assert!(legacy(&contexts[0]).is_err());
        assert_eq!(there(&contexts[0]), 0);
    }
}
