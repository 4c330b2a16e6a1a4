//! Faults on demand: `NVSHARE_SIM_FAULTS=create:5=oom,copy:3=fail,launch:2=hang`, counted in each process for itself. A
//! function's exported name is a point as well: `cuFuncLoad:1=oom`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::config::ConfigError;

/// Where a fault can strike. Each call that reaches the point counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// `cuMemCreate`.
    Create,
    /// `cuMemMap`.
    Map,
    /// `cuMemSetAccess`.
    Access,
    /// `cuMemAlloc` and its relatives.
    Alloc,
    /// `cuMemHostAlloc` and `cuMemHostRegister`.
    Host,
    /// A copy or memset, when it is executed.
    Copy,
    /// A kernel, when it is executed.
    Launch,
    /// The creation of a context.
    Context,
    /// The load of a module.
    Module,
}

const POINTS: [(&str, Point); 9] = [
    ("create", Point::Create),
    ("map", Point::Map),
    ("access", Point::Access),
    ("alloc", Point::Alloc),
    ("host", Point::Host),
    ("copy", Point::Copy),
    ("launch", Point::Launch),
    ("context", Point::Context),
    ("module", Point::Module),
];

/// What happens there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The call answers that there is not enough memory.
    OutOfMemory,
    /// The call or the work fails.
    Fail,
    /// The work never ends.
    Hang,
    /// The work takes this much longer.
    Slow(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    first: u64,
    last: u64,
    effect: Effect,
}

impl Fault {
    fn is_due(&self, nth: u64) -> bool {
        (self.first..=self.last).contains(&nth)
    }
}

/// All faults asked for, and how often each point was reached.
#[derive(Debug, Default)]
pub struct FaultPlan {
    faults: Vec<(Point, Fault)>,
    reached: [AtomicU64; POINTS.len()],
    /// Faults of calls, by name, and how often each was made.
    calls: Vec<(String, Fault, AtomicU64)>,
}

impl FaultPlan {
    /// Reads `point:which=effect` separated by commas; `which` is `5`, `5-7`, `5+` or `*`; the effects are `oom`,
    /// `fail`, `hang` and `slow/milliseconds`. A name that is no point is one that `can_fail` knows: a fault that could
    /// never strike would make a test pass.
    pub fn parse(text: &str, can_fail: impl Fn(&str) -> bool) -> Result<FaultPlan, ConfigError> {
        let mut plan = FaultPlan::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            plan.add(part, &can_fail).ok_or_else(|| ConfigError {
                name: "NVSHARE_SIM_FAULTS".into(),
                value: part.into(),
                expected: format!(
                    "point:which=effect with a point of {} or the exported name of a simulated function that needs cuInit, \
                     `which` like 5, 5-7, 5+ or *, and an effect of oom, fail, hang, slow/MILLISECONDS",
                    POINTS.map(|(name, _)| name).join(", ")
                ),
            })?;
        }
        Ok(plan)
    }

    /// Counts that `point` was reached and says what is to happen there, if anything.
    pub fn reach(&self, point: Point) -> Option<Effect> {
        if self.faults.is_empty() {
            return None;
        }
        let nth = self.reached[point as usize].fetch_add(1, Ordering::Relaxed) + 1;
        let due = self.faults.iter().find(|(at, fault)| *at == point && fault.is_due(nth));
        due.map(|(_, fault)| fault.effect)
    }

    /// Counts that the function was called and says what is to happen, if anything.
    pub fn call(&self, name: &str) -> Option<Effect> {
        let of_it = self.calls.iter().filter(|(of, ..)| of == name);
        let due = of_it.filter(|(_, fault, calls)| fault.is_due(calls.fetch_add(1, Ordering::Relaxed) + 1));
        // All are counted, the first one strikes.
        due.map(|(_, fault, _)| fault.effect).reduce(|first, _| first)
    }

    fn add(&mut self, text: &str, can_fail: impl Fn(&str) -> bool) -> Option<()> {
        let (place, fault) = parse_fault(text)?;
        match POINTS.iter().find(|(name, _)| *name == place) {
            Some((_, point)) => self.faults.push((*point, fault)),
            None if can_fail(place) => {
                self.calls.push((place.to_owned(), fault, AtomicU64::new(0)));
            }
            None => return None,
        }
        Some(())
    }
}

fn parse_fault(text: &str) -> Option<(&str, Fault)> {
    let (place, effect) = text.split_once('=')?;
    let (place, which) = place.split_once(':')?;
    let (first, last) = if which == "*" {
        (1, u64::MAX)
    } else if let Some(first) = which.strip_suffix('+') {
        (first.parse().ok()?, u64::MAX)
    } else if let Some((first, last)) = which.split_once('-') {
        (first.parse().ok()?, last.parse().ok()?)
    } else {
        let nth = which.parse().ok()?;
        (nth, nth)
    };
    let effect = match effect {
        "oom" => Effect::OutOfMemory,
        "fail" => Effect::Fail,
        "hang" => Effect::Hang,
        slow => Effect::Slow(Duration::from_millis(slow.strip_prefix("slow/")?.parse().ok()?)),
    };
    (first >= 1 && first <= last).then_some((place, Fault { first, last, effect }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_the_call_it_names_and_no_other() {
        let plan = FaultPlan::parse("create:2=oom, copy:3+=fail,launch:*=slow/20", |_| false).unwrap();
        assert_eq!([(); 3].map(|()| plan.reach(Point::Create)), [None, Some(Effect::OutOfMemory), None]);
        let copies = [(); 4].map(|()| plan.reach(Point::Copy));
        assert_eq!(copies, [None, None, Some(Effect::Fail), Some(Effect::Fail)]);
        assert_eq!(plan.reach(Point::Launch), Some(Effect::Slow(Duration::from_millis(20))));
        assert_eq!(plan.reach(Point::Map), None);
    }

    #[test]
    fn a_call_is_counted_by_its_name() {
        let plan =
            FaultPlan::parse("cuFuncLoad:2=oom,cuFuncLoad:3=fail,cuGraphLaunch:1=oom", |_| true).unwrap();
        let loads = [(); 4].map(|()| plan.call("cuFuncLoad"));
        assert_eq!(loads, [None, Some(Effect::OutOfMemory), Some(Effect::Fail), None]);
        assert_eq!(plan.call("cuGraphLaunch"), Some(Effect::OutOfMemory));
        assert_eq!(plan.call("cuGraphLaunch_ptsz"), None);
    }

    #[test]
    fn every_point_is_counted_in_its_own_place() {
        for (index, (_, point)) in POINTS.iter().enumerate() {
            assert_eq!(*point as usize, index);
        }
    }

    #[test]
    fn a_fault_that_cannot_be_read_is_refused_with_the_grammar() {
        let can_fail = |name: &str| name == "cuFuncLoad";
        for text in [
            "create",
            "create:0=oom",
            "create:5-3=oom",
            "nothing:1=oom",
            "copy:1=explode",
            "cuFuncLoda:1=oom",
            "cuFuncLoad:1",
        ] {
            let error =
                FaultPlan::parse(&format!("cuFuncLoad:1=oom,{text}"), can_fail).unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("point:which=effect"), "{error}");
        }
    }
}
