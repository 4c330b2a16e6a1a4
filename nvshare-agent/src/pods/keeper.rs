//! The task that owns what is known of this node's pods: it hears of them from the API server and from the kubelet,
//! publishes the directory, and says once what is wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use nvshare_common::ids::ClientId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::annotations::{self, Problem};
use super::cgroup::PodUid;
use super::directory::{Allocated, Directory, Pod};
use super::events::{self, Complaint};
use super::trouble::{Kind, Trouble};
use super::{News, Options, cluster, kubelet};
use crate::health::{Health, Part};

/// How long the API server may take for its first answer before it is reported.
const PATIENCE: Duration = Duration::from_secs(5);
/// How much news may wait.
const NEWS: usize = 64;

/// How a source of news is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Not asked.
    Off,
    /// Asked, and has not answered yet.
    Asked,
    /// Answers.
    Works,
    /// Does not.
    Troubled(Trouble),
}

/// All that the task has.
pub(super) struct Keeper {
    pods: BTreeMap<PodUid, Pod>,
    allocated: Allocated,
    api: Source,
    kubelet: Source,
    said: BTreeMap<PodUid, BTreeSet<Problem>>,
    complaints: Option<mpsc::Sender<Complaint>>,
    directory: watch::Sender<Arc<Directory>>,
    health: Health,
}

impl Keeper {
    /// Keeps the directory until nobody looks at it any more.
    pub(super) async fn run(options: Options, directory: watch::Sender<Arc<Directory>>, health: Health) {
        let mut keeper = Keeper {
            pods: BTreeMap::new(),
            allocated: Allocated::new(),
            api: Source::Off,
            kubelet: Source::Off,
            said: BTreeMap::new(),
            complaints: None,
            directory,
            health,
        };
        let (tell, mut news) = mpsc::channel(NEWS);
        // They end with this task.
        let mut sources = JoinSet::new();
        keeper.start(options, &tell, &mut sources);
        keeper.report();
        let patience = tokio::time::sleep(PATIENCE);
        tokio::pin!(patience);
        loop {
            tokio::select! {
                // Lives as long as this task: it holds a sender itself.
                Some(news) = news.recv() => keeper.hear(news),
                () = &mut patience, if keeper.api == Source::Asked => {
                    keeper.hear(News::ApiTrouble(Trouble::silent()));
                }
                () = keeper.directory.closed() => return,
            }
        }
    }

    fn start(&mut self, options: Options, tell: &mpsc::Sender<News>, sources: &mut JoinSet<()>) {
        if let Some(socket) = options.pod_resources {
            self.kubelet = Source::Asked;
            sources.spawn(kubelet::follow(socket, tell.clone()));
        }
        let Some(server) = options.api else { return };
        let node = options.node.ok_or_else(Trouble::no_node);
        match node.and_then(|node| Ok((node, cluster::connect(server.url)?))) {
            Ok((node, client)) => {
                self.api = Source::Asked;
                let (complain, complaints) = mpsc::channel(events::QUEUE);
                self.complaints = Some(complain);
                sources.spawn(events::post(client.clone(), node.clone(), complaints));
                sources.spawn(cluster::follow(client, node, tell.clone()));
            }
            Err(trouble) => self.api = Source::Troubled(trouble),
        }
    }

    fn hear(&mut self, news: News) {
        let changed = match news {
            News::Pods(pods) => {
                self.api = Source::Works;
                self.said.retain(|uid, _| pods.contains_key(uid));
                let changed = pods != self.pods;
                self.pods = pods;
                self.pods.clone().iter().for_each(|(uid, pod)| self.complain(uid, pod));
                changed
            }
            News::Pod(uid, pod) => {
                self.api = Source::Works;
                self.complain(&uid, &pod);
                self.pods.insert(uid, pod.clone()).as_ref() != Some(&pod)
            }
            News::NoPod(uid) => {
                self.api = Source::Works;
                self.said.remove(&uid);
                self.pods.remove(&uid).is_some()
            }
            News::ApiTrouble(trouble) => {
                troubled(&mut self.api, trouble);
                false
            }
            News::Allocated(allocated) => {
                self.kubelet = Source::Works;
                let changed = allocated != self.allocated;
                self.allocated = allocated;
                changed
            }
            News::KubeletTrouble(trouble) => {
                // With the API server's word the kubelet's is not needed; it is said once all the same.
                if troubled(&mut self.kubelet, trouble.clone()) && self.api == Source::Works {
                    info!(why = trouble.why, "pods are known by the API server alone");
                }
                false
            }
        };
        if changed {
            let directory = Directory::new(self.pods.clone(), self.allocated.clone());
            self.directory.send_replace(Arc::new(directory));
        }
        self.report();
    }

    /// Tells [`Health`], which says what changed.
    fn report(&self) {
        use Source::{Asked, Off, Troubled, Works};
        let part = Part::Pods;
        match (&self.api, &self.kubelet) {
            (Off, Off) => self.health.off(part),
            (Works, _) | (Off, Works) => self.health.works(part),
            (Asked, _) | (Off, Asked) => {}
            (Troubled(api), Works) => self.health.missing(
                part,
                &format!(
                    "{}; meanwhile the kubelet tells whose a client is, and annotations hold as they were",
                    api.why
                ),
            ),
            (Troubled(api), Troubled(kubelet)) => {
                self.health.missing(part, &format!("{}; and {}", api.why, kubelet.why));
            }
            (Troubled(trouble), _) | (Off, Troubled(trouble)) => self.health.missing(part, &trouble.why),
        }
    }

    /// Says each problem of a pod once: here, and to its owner.
    fn complain(&mut self, uid: &PodUid, pod: &Pod) {
        let (_, problems) = annotations::orders(&pod.annotations, ClientId(0));
        let said = self.said.entry(uid.clone()).or_default();
        said.retain(|problem| problems.contains(problem));
        for problem in problems {
            if !said.insert(problem.clone()) {
                continue;
            }
            warn!(namespace = pod.namespace, pod = pod.name, "{problem}");
            if let Some(complaints) = &self.complaints {
                let complaint = Complaint {
                    namespace: pod.namespace.clone(),
                    pod: pod.name.clone(),
                    uid: uid.clone(),
                    problem,
                };
                // A queue that is full has been said to be so by what stands in it.
                let _ = complaints.try_send(complaint);
            }
        }
        if said.is_empty() {
            self.said.remove(uid);
        }
    }
}

/// Takes note of a trouble, unless it is one of the kind that is there. Says whether it is new.
fn troubled(source: &mut Source, trouble: Trouble) -> bool {
    let kind = |source: &Source| match source {
        Source::Troubled(trouble) => Some(trouble.kind),
        _ => None,
    };
    let known: Option<Kind> = kind(source);
    if known == Some(trouble.kind) {
        return false;
    }
    *source = Source::Troubled(trouble);
    true
}
