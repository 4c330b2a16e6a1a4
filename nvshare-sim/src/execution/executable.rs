//! Graphs that can be launched: as they were when they were instantiated, and what a launch means for their memory.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use cudarc::driver::sys::{CUgraphNode, CUresult};

use super::graph::{Graph, NodeKind};
use super::stream::Stream;
use super::work::{self, Submitted, Work};
use crate::call::Outcome;
use crate::completion::Completion;
use crate::handles::Registry;
use crate::memory::graph::{Backed, Hold};

/// All executable graphs.
pub(crate) static EXECUTABLES: Registry<Executable> = Registry::new();

/// `CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH`, `_DEVICE_LAUNCH`, and all that are known.
const AUTO_FREE: u64 = 1;
const DEVICE_LAUNCH: u64 = 4;
const FLAGS: u64 = 15;

/// A graph as it was when it was instantiated.
pub(crate) struct Executable {
    /// The nodes it was made of, for changes of their parameters.
    works: RwLock<Arc<Vec<(usize, Work)>>>,
    /// What is still allocated is freed when it is launched again.
    frees_first: bool,
    /// The end of the last launch: the next one comes after it.
    last: Mutex<Option<Arc<Completion>>>,
}

/// What a launch does with memory.
#[derive(Default)]
struct Memory {
    /// What it allocates, and whether it leaves it allocated.
    allocates: Vec<(Arc<Hold>, bool)>,
    /// What it frees that others have allocated.
    frees: Vec<Arc<Hold>>,
}

impl Executable {
    /// Instantiates a graph.
    pub(crate) fn new(graph: &Arc<Graph>, flags: u64) -> Outcome<Arc<Executable>> {
        if flags & !FLAGS != 0 || flags & (AUTO_FREE | DEVICE_LAUNCH) == AUTO_FREE | DEVICE_LAUNCH {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if flags & DEVICE_LAUNCH != 0 {
            graph.without_memory()?;
        }
        let executable = graph.instantiated(|| {
            let works = Self::take(graph)?;
            works.iter().try_for_each(|(_, work)| work.check())?;
            Ok(Arc::new(Executable::of(Arc::new(works), flags & AUTO_FREE != 0)))
        })?;
        EXECUTABLES.insert::<()>(Arc::clone(&executable));
        Ok(executable)
    }

    fn of(works: Arc<Vec<(usize, Work)>>, frees_first: bool) -> Executable {
        Executable { works: RwLock::new(works), frees_first, last: Mutex::default() }
    }

    /// A graph as it is now, to be part of another. Not possible with memory.
    pub(crate) fn snapshot_of(graph: &Arc<Graph>) -> Outcome<Arc<Executable>> {
        graph.without_memory()?;
        Ok(Arc::new(Executable::of(Arc::new(Self::take(graph)?), false)))
    }

    fn take(graph: &Arc<Graph>) -> Outcome<Vec<(usize, Work)>> {
        let nodes = graph.ordered()?;
        Ok(nodes.iter().map(|node| (node.handle() as usize, node.work())).collect())
    }

    fn all(&self) -> Arc<Vec<(usize, Work)>> {
        Arc::clone(&self.works.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a launch does, in order.
    pub(crate) fn works(&self) -> Vec<Work> {
        self.all().iter().map(|(_, work)| work.clone()).collect()
    }

    /// Launches it, after what was launched of it before. It is not changed by what happens to the graph afterwards.
    pub(crate) fn launch(&self, stream: &Arc<Stream>) -> Outcome {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let works = self.all();
        let memory = Memory::of(&works);
        if !memory.is_none() {
            // A graph with memory cannot be a child of another, which is what it would be in a capture.
            super::capture::forbid(stream, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)?;
        }
        let backed = memory.prepare(self.frees_first)?;
        let work = Work::Graph(Arc::new(Executable::of(works, false)));
        let before: Vec<_> = last.iter().cloned().collect();
        if let Submitted::Running(done) = work::submit_after(stream, work, &before)? {
            memory.launched(stream, &done);
            *last = Some(done);
        }
        drop(backed);
        Ok(())
    }

    /// Changes what one node does; an error if it is none of the graph's, or does something of another kind.
    pub(crate) fn set(&self, node: CUgraphNode, work: Work) -> Outcome {
        let mut works = self.works.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = works.to_vec();
        let place = changed.iter_mut().find(|(handle, _)| *handle == node as usize);
        let (_, before) = place.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let work = work.in_place_of(before);
        if !NodeKind::can_become(before, &work) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        work.check()?;
        *before = work;
        *works = Arc::new(changed);
        Ok(())
    }

    /// Takes over the parameters of a graph of the same form; an error where the forms differ.
    pub(crate) fn update(&self, graph: &Arc<Graph>) -> Outcome {
        let new = Self::take(graph)?;
        let mut works = self.works.write().unwrap_or_else(PoisonError::into_inner);
        let same = new.len() == works.len()
            && new
                .iter()
                .zip(works.iter())
                .all(|((_, new), (_, old))| can_take_over(old, new) && new.check().is_ok());
        if !same {
            return Err(CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        }
        let handles = works.iter().map(|(handle, _)| *handle);
        *works = Arc::new(handles.zip(new).map(|(handle, (_, work))| (handle, work)).collect());
        Ok(())
    }
}

/// Whether an update lets a node that does the one do the other: memory is that of a twin then, as large and as near.
fn can_take_over(before: &Work, after: &Work) -> bool {
    match (before, after) {
        (Work::Allocate(old), Work::Allocate(new)) => (old.bytes, old.device) == (new.bytes, new.device),
        (Work::Free(_), Work::Free(_)) => true,
        _ => NodeKind::can_become(before, after),
    }
}

impl Memory {
    fn of(works: &[(usize, Work)]) -> Memory {
        let mut memory = Memory::default();
        for (_, work) in works {
            match work {
                Work::Allocate(hold) => memory.allocates.push((Arc::clone(hold), true)),
                Work::Free(hold) => {
                    match memory.allocates.iter_mut().find(|(other, _)| other.start == hold.start) {
                        Some((_, stays)) => *stays = false,
                        None => memory.frees.push(Arc::clone(hold)),
                    }
                }
                _ => {}
            }
        }
        memory
    }

    fn is_none(&self) -> bool {
        self.allocates.is_empty() && self.frees.is_empty()
    }

    /// Puts memory behind what is going to be allocated. An error if the last launch's is still allocated, unless it is freed
    /// first, or if what is to be freed is not.
    fn prepare(&self, frees_first: bool) -> Outcome<Vec<Backed>> {
        let again = self.allocates.iter().any(|(hold, _)| hold.is_unfreed());
        if (again && !frees_first) || self.frees.iter().any(|hold| !hold.is_unfreed()) {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        self.allocates.iter().map(|(hold, _)| hold.back()).collect()
    }

    fn launched(&self, stream: &Arc<Stream>, done: &Arc<Completion>) {
        for (hold, stays) in &self.allocates {
            hold.launched(&stream.context, done, *stays);
        }
        for hold in &self.frees {
            let _ = hold.free_by_call();
        }
    }
}
