//! Graphs: nodes of work with an order between them. What can be launched of them: [`super::executable`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use cudarc::driver::sys::{CUgraph, CUgraphNode, CUresult};

use super::executable::Executable;
use super::work::Work;
use crate::call::Outcome;
use crate::handles::{Registry, handle_of};
use crate::memory::graph::Owner;

/// All graphs.
pub(crate) static GRAPHS: Registry<Graph> = Registry::new();
/// All nodes.
pub(crate) static NODES: Registry<Node> = Registry::new();
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
    /// An allocation.
    Allocate = 10,
    /// A free.
    Free = 11,
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
            Work::Leave(_) | Work::Custom(_) | Work::Reach(_) | Work::Await(_) | Work::Nothing => {
                NodeKind::Empty
            }
            Work::Allocate(_) => NodeKind::Allocate,
            Work::Free(_) => NodeKind::Free,
        }
    }

    /// Whether it has to do with memory, which what is done to its graph must allow for.
    pub(crate) fn is_memory(self) -> bool {
        matches!(self, NodeKind::Allocate | NodeKind::Free)
    }

    /// Whether a node that does the one can be changed to do the other.
    pub(crate) fn can_become(before: &Work, after: &Work) -> bool {
        let kind = NodeKind::of(before);
        kind == NodeKind::of(after) && !kind.is_memory()
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
    /// What the memory of its nodes knows it by.
    pub(crate) owner: Arc<Owner>,
    nodes: Mutex<Vec<Arc<Node>>>,
    /// What was last instantiated of it.
    executable: Mutex<Weak<Executable>>,
}

impl Graph {
    /// An empty graph.
    pub(crate) fn new() -> Arc<Graph> {
        let graph =
            Arc::new(Graph { owner: Arc::default(), nodes: Mutex::default(), executable: Mutex::default() });
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

    /// Takes a node out; what came after it does not come after anything in its place. Not possible in a graph with memory.
    pub(crate) fn remove(&self, node: &Arc<Node>) -> Outcome {
        self.without_memory()?;
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
        Ok(())
    }

    /// An error if one of its nodes allocates or frees.
    pub(crate) fn without_memory(&self) -> Outcome {
        let has_memory = self.lock().iter().any(|node| NodeKind::of(&node.work()).is_memory());
        if has_memory { Err(CUresult::CUDA_ERROR_NOT_SUPPORTED) } else { Ok(()) }
    }

    /// Forgets the graph and its nodes.
    pub(crate) fn destroy(self: &Arc<Graph>) {
        GRAPHS.remove(self.handle());
        for node in self.lock().drain(..) {
            NODES.remove(node.handle());
        }
    }

    /// A copy of the graph. Not possible with memory.
    pub(crate) fn duplicate(&self) -> Outcome<Arc<Graph>> {
        self.without_memory()?;
        let copy = Graph::new();
        let nodes = self.nodes();
        let copies: Vec<_> = nodes.iter().map(|node| copy.add(node.work(), Vec::new())).collect();
        for (node, twin) in nodes.iter().zip(&copies) {
            let place = |before: &Arc<Node>| nodes.iter().position(|other| Arc::ptr_eq(other, before));
            let after =
                node.after().iter().filter_map(place).map(|index| Arc::clone(&copies[index])).collect();
            *twin.after.lock().unwrap_or_else(PoisonError::into_inner) = after;
        }
        Ok(copy)
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

    /// What is made of it to be launched; one at a time if it has memory.
    pub(crate) fn instantiated(
        &self,
        make: impl FnOnce() -> Outcome<Arc<Executable>>,
    ) -> Outcome<Arc<Executable>> {
        let mut before = self.executable.lock().unwrap_or_else(PoisonError::into_inner);
        if before.strong_count() > 0 {
            self.without_memory()?;
        }
        let executable = make()?;
        *before = Arc::downgrade(&executable);
        Ok(executable)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Node>>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_node_comes_after_what_it_must_and_in_a_circle_none_can() {
        let graph = Graph::new();
        let last = graph.add(Work::Nothing, Vec::new());
        let first = graph.add(Work::Nothing, Vec::new());
        *last.after.lock().expect("nobody panicked") = vec![Arc::clone(&first)];
        let order: Vec<_> = graph.ordered().expect("an order").iter().map(Node::handle).collect();
        assert_eq!(order, [first.handle(), last.handle()]);
        *first.after.lock().expect("nobody panicked") = vec![Arc::clone(&last)];
        assert_eq!(graph.ordered().err(), Some(CUresult::CUDA_ERROR_INVALID_VALUE));
        graph.destroy();
    }

    #[test]
    fn a_copy_has_nodes_of_its_own_between_which_the_order_is_the_same() {
        let graph = Graph::new();
        let first = graph.add(Work::Nothing, Vec::new());
        graph.add(Work::Nothing, vec![Arc::clone(&first)]);
        let copy = graph.duplicate().expect("a graph without memory");
        graph.destroy();
        let nodes = copy.nodes();
        let after = nodes[1].after();
        assert!(nodes.len() == 2 && after.len() == 1 && Arc::ptr_eq(&after[0], &nodes[0]));
        assert!(!Arc::ptr_eq(&nodes[0], &first));
        copy.remove(&nodes[0]).expect("a graph without memory");
        assert!(nodes[1].after().is_empty() && copy.nodes().len() == 1);
        copy.destroy();
    }
}
