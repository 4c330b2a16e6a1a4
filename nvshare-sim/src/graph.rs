//! Graphs: nodes of work with an order between them, and what can be launched of them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use cudarc::driver::sys::{CUgraph, CUgraphNode, CUresult};

use crate::export::Outcome;
use crate::handles::{Registry, handle_of};
use crate::work::Work;

/// All graphs.
pub(crate) static GRAPHS: Registry<Graph> = Registry::new();
/// All nodes.
pub(crate) static NODES: Registry<Node> = Registry::new();
/// All executable graphs.
pub(crate) static EXECUTABLES: Registry<Executable> = Registry::new();

/// What kind of node the application is told it is; the values are the driver's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum NodeKind {
    /// A kernel.
    Kernel = 0,
    /// A copy.
    Copy = 1,
    /// A memset.
    Set = 2,
    /// A host function.
    Host = 3,
    /// Another graph.
    Graph = 4,
    /// Nothing.
    Empty = 5,
}

impl NodeKind {
    /// The kind of node that this work becomes.
    pub(crate) fn of(work: &Work) -> NodeKind {
        match work {
            Work::Kernel(_) => NodeKind::Kernel,
            Work::Transfer(_) => NodeKind::Copy,
            Work::Fill(_) => NodeKind::Set,
            Work::Host(_) | Work::Callback(_) => NodeKind::Host,
            Work::Graph(_) => NodeKind::Graph,
            Work::Custom(_) | Work::Nothing => NodeKind::Empty,
        }
    }
}

/// A node.
pub(crate) struct Node {
    /// Its graph.
    pub(crate) graph: Weak<Graph>,
    /// What it does; a node's parameters can be changed.
    pub(crate) work: Mutex<Work>,
    /// What comes before it.
    pub(crate) after: Mutex<Vec<Arc<Node>>>,
}

impl Node {
    /// The handle.
    pub(crate) fn handle(self: &Arc<Node>) -> CUgraphNode {
        handle_of(self)
    }

    /// What it does.
    pub(crate) fn work(&self) -> Work {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What comes before it.
    pub(crate) fn after(&self) -> Vec<Arc<Node>> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A graph.
pub(crate) struct Graph {
    nodes: Mutex<Vec<Arc<Node>>>,
}

impl Graph {
    /// An empty graph.
    pub(crate) fn new() -> Arc<Graph> {
        let graph = Arc::new(Graph { nodes: Mutex::default() });
        GRAPHS.insert::<()>(Arc::clone(&graph));
        graph
    }

    /// The handle.
    pub(crate) fn handle(self: &Arc<Graph>) -> CUgraph {
        handle_of(self)
    }

    /// The nodes in the order of their creation.
    pub(crate) fn nodes(&self) -> Vec<Arc<Node>> {
        self.lock().clone()
    }

    /// Adds a node that comes after others.
    pub(crate) fn add(self: &Arc<Graph>, work: Work, after: Vec<Arc<Node>>) -> Arc<Node> {
        let node =
            Arc::new(Node { graph: Arc::downgrade(self), work: Mutex::new(work), after: Mutex::new(after) });
        NODES.insert::<()>(Arc::clone(&node));
        self.lock().push(Arc::clone(&node));
        node
    }

    /// Takes a node out; what came after it does not come after anything in its place.
    pub(crate) fn remove(&self, node: &Arc<Node>) {
        let mut nodes = self.lock();
        nodes.retain(|other| !Arc::ptr_eq(other, node));
        for other in nodes.iter() {
            other
                .after
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .retain(|before| !Arc::ptr_eq(before, node));
        }
        NODES.remove(node.handle());
    }

    /// Forgets the graph and its nodes.
    pub(crate) fn destroy(self: &Arc<Graph>) {
        GRAPHS.remove(self.handle());
        for node in self.lock().drain(..) {
            NODES.remove(node.handle());
        }
    }

    /// A copy of the graph.
    pub(crate) fn duplicate(&self) -> Arc<Graph> {
        let copy = Graph::new();
        let nodes = self.nodes();
        let copies: Vec<_> = nodes.iter().map(|node| copy.add(node.work(), Vec::new())).collect();
        for (node, twin) in nodes.iter().zip(&copies) {
            let place = |before: &Arc<Node>| nodes.iter().position(|other| Arc::ptr_eq(other, before));
            let after =
                node.after().iter().filter_map(place).map(|index| Arc::clone(&copies[index])).collect();
            *twin.after.lock().unwrap_or_else(PoisonError::into_inner) = after;
        }
        copy
    }

    /// The nodes so that each comes after what it must; an error if there is no such order.
    pub(crate) fn ordered(&self) -> Outcome<Vec<Arc<Node>>> {
        let mut left = self.nodes();
        let mut ordered: Vec<Arc<Node>> = Vec::with_capacity(left.len());
        let mut placed = std::collections::HashSet::new();
        while !left.is_empty() {
            let before = left.len();
            left.retain(|node| {
                let ready = node.after().iter().all(|other| placed.contains(&Arc::as_ptr(other)));
                if ready {
                    placed.insert(Arc::as_ptr(node));
                    ordered.push(Arc::clone(node));
                }
                !ready
            });
            if left.len() == before {
                return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
            }
        }
        Ok(ordered)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A graph as it was when it was instantiated.
pub(crate) struct Executable {
    /// The nodes it was made of, for changes of their parameters.
    works: RwLock<Arc<Vec<(usize, Work)>>>,
}

impl Executable {
    /// Instantiates a graph.
    pub(crate) fn new(graph: &Arc<Graph>) -> Outcome<Arc<Executable>> {
        let executable = Arc::new(Executable { works: RwLock::new(Arc::new(Self::take(graph)?)) });
        EXECUTABLES.insert::<()>(Arc::clone(&executable));
        Ok(executable)
    }

    /// A graph as it is now, to be part of another.
    pub(crate) fn snapshot_of(graph: &Arc<Graph>) -> Outcome<Arc<Executable>> {
        Ok(Arc::new(Executable { works: RwLock::new(Arc::new(Self::take(graph)?)) }))
    }

    fn take(graph: &Arc<Graph>) -> Outcome<Vec<(usize, Work)>> {
        let nodes = graph.ordered()?;
        Ok(nodes.iter().map(|node| (node.handle() as usize, node.work())).collect())
    }

    /// What a launch does, in order.
    pub(crate) fn works(&self) -> Vec<Work> {
        let works = Arc::clone(&self.works.read().unwrap_or_else(PoisonError::into_inner));
        works.iter().map(|(_, work)| work.clone()).collect()
    }

    /// As it is now: a launch is not changed by what happens to the graph afterwards.
    pub(crate) fn snapshot(&self) -> Arc<Executable> {
        let works = Arc::clone(&self.works.read().unwrap_or_else(PoisonError::into_inner));
        Arc::new(Executable { works: RwLock::new(works) })
    }

    /// Changes what one node does; an error if it is none of the graph's.
    pub(crate) fn set(&self, node: CUgraphNode, work: Work) -> Outcome {
        let mut works = self.works.write().unwrap_or_else(PoisonError::into_inner);
        let mut changed = works.to_vec();
        let place = changed.iter_mut().find(|(handle, _)| *handle == node as usize);
        place.ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?.1 = work;
        *works = Arc::new(changed);
        Ok(())
    }

    /// Takes over the parameters of a graph of the same form; an error where the forms differ.
    pub(crate) fn update(&self, graph: &Arc<Graph>) -> Outcome {
        let new = Self::take(graph)?;
        let mut works = self.works.write().unwrap_or_else(PoisonError::into_inner);
        let same = new.len() == works.len()
            && new.iter().zip(works.iter()).all(|((_, a), (_, b))| NodeKind::of(a) == NodeKind::of(b));
        if !same {
            return Err(CUresult::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
        }
        let handles = works.iter().map(|(handle, _)| *handle);
        *works = Arc::new(handles.zip(new).map(|(handle, (_, work))| (handle, work)).collect());
        Ok(())
    }
}
