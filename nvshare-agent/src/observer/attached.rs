//! One file that is observed, or why it is not, and how that is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Instant;

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::Attachment;

use super::guard::Guard;
use super::library::{Library, Point};
use super::programs::{Links, Programs};
use super::rewrites::Watched;
use super::seccomp::Returns;
use super::share::Owner;

/// One file.
pub(super) struct Attached {
    pub(super) library: Library,
    pub(super) guard: Guard,
    /// Device and inode as processes' maps have them.
    pub(super) files: Vec<String>,
    pub(super) how: How,
    /// Since when.
    pub(super) since: Moment,
    /// Tells when its contents change.
    pub(super) watch: Option<Watched>,
    /// Who brought it; nobody's: named by a flag, observed for ever.
    pub(super) owner: Option<Owner>,
    pub(super) used: Instant,
    /// Processes that have other code at some of the places: at which, and in which look this was seen last.
    pub(super) patched: BTreeMap<u32, (Vec<usize>, u64)>,
    /// Places without a probe because of them.
    pub(super) withheld: BTreeSet<usize>,
    /// Where the hits of its places are counted, and how many there were before it.
    pub(super) sites: Option<Sites>,
}

pub(super) enum How {
    /// Observed.
    Links(Links),
    /// The same file to the kernel as another one that is.
    Same,
    /// Not observed; why.
    Not(String),
}

/// Where the hits of a file's places are counted.
pub(super) struct Sites {
    pub(super) first: u32,
    /// By place: what an earlier file left there.
    pub(super) before: Vec<u64>,
}

impl Attached {
    /// Where its probes go.
    pub(super) fn points(&self) -> Vec<&Point> {
        let points = self.library.points.iter().enumerate();
        points.filter(|(index, _)| !self.withheld.contains(index)).map(|(_, point)| point).collect()
    }

    /// Why functions have none.
    pub(super) fn withheld_because(&self) -> Vec<String> {
        let because = |index: &usize| {
            let mut who = self.patched.iter().filter(|(_, (places, _))| places.contains(index));
            let pid = who.next().map_or(0, |(pid, _)| *pid);
            let others = match who.count() {
                0 => String::new(),
                more => format!(" and {more} others"),
            };
            format!(
                "{}: not observed: process {pid}{others} has put other code there",
                self.library.points[*index].symbol
            )
        };
        self.withheld.iter().map(because).collect()
    }

    pub(super) fn show(&self, programs: &Programs) -> Attachment {
        let all = self.library.points.len();
        let (functions, mut refused, problem) = match &self.how {
            How::Links(links) => {
                let refused: Vec<String> = links.failed.iter().map(ToString::to_string).collect();
                (all - links.failed.len() - self.withheld.len(), refused, None)
            }
            How::Same => (all, Vec::new(), None),
            How::Not(why) => (0, Vec::new(), Some(why.clone())),
        };
        refused.extend(self.withheld_because());
        refused.extend(self.library.exposed.iter().map(|symbol| {
            format!("{symbol}: not observed: its only place is where other libraries put their jumps")
        }));
        Attachment {
            path: self.library.path.display().to_string(),
            functions: functions as u32,
            refused,
            stepped: if functions == 0 { 0 } else { stepped(&self.library) },
            means: if programs.multi() { "uprobe_multi" } else { "single" }.into(),
            problem,
            places: self.places(programs),
        }
    }

    fn places(&self, programs: &Programs) -> String {
        let mut text = String::new();
        let [entry, returned] = programs.cost();
        let points = self.library.points.iter().enumerate();
        for (index, point) in points.filter(|(index, _)| !self.withheld.contains(index)) {
            let bytes = self.guard.instruction(point.offset);
            let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            let (behind, cost) = (
                if point.behind { "behind it" } else { "its own" },
                if point.emulated { "emulated" } else { "stepped" },
            );
            let returns = if point.returns { ", its return" } else { "" };
            let hits = self
                .sites
                .as_ref()
                .map(|sites| programs.hits(sites.first + index as u32).wrapping_sub(sites.before[index]));
            let time = entry.map(|entry| entry + returned.filter(|_| point.returns).unwrap_or_default());
            let figure =
                |figure: Option<u64>| figure.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{} +{:#x} ({behind}) {} {cost}{returns}, {} hits, {} ns each",
                point.symbol,
                point.offset,
                bytes.join(" "),
                figure(hits),
                figure(time)
            );
        }
        text
    }
}

pub(super) fn attach(programs: &mut Programs, returns: &Returns, attached: &Attached) -> How {
    let points = attached.points();
    let sites = attached.sites.as_ref().map_or(0, |sites| sites.first);
    let links = programs.attach(&attached.library, &points, *returns == Returns::Sound, sites);
    if !points.is_empty() && links.failed.len() == points.len() {
        return How::Not(links.failed.first().map_or_else(String::new, ToString::to_string));
    }
    How::Links(links)
}

/// How many probes cost 20 times as much as others.
pub(super) fn stepped(library: &Library) -> u32 {
    library.points.iter().filter(|point| !point.emulated).count() as u32
}
