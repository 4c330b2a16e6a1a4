//! What programs without the library hold, by the container they run in. Pods come and go and anybody can make many: the
//! series are bounded, and made anew for each scrape.

use std::collections::BTreeMap;

use nvshare_agent_core::snapshot::Foreign;
use nvshare_common::bytes::Bytes;

/// Containers that have a series of their own: those that hold most. The rest is `other`.
pub(super) const OWNERS: usize = 64;

/// Namespace, pod and container, with what their processes were seen to allocate and not to free.
pub(super) fn by_owner(processes: &[Foreign]) -> Vec<([&str; 3], Bytes)> {
    let mut sums: BTreeMap<[&str; 3], Bytes> = BTreeMap::new();
    for process in processes {
        let owner = &process.owner;
        let sum = sums.entry([&owner.namespace, &owner.pod, &owner.container]).or_default();
        sum.0 = sum.0.saturating_add(process.allocated.0);
    }
    let mut owners: Vec<_> = sums.into_iter().collect();
    owners.sort_by_key(|(owner, bytes)| (std::cmp::Reverse(*bytes), *owner));
    if owners.len() > OWNERS {
        let rest = owners.split_off(OWNERS);
        let bytes = rest.iter().fold(0, |sum: u64, (_, bytes)| sum.saturating_add(bytes.0));
        owners.push((["", "", "other"], Bytes(bytes)));
    }
    owners
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use nvshare_agent_core::snapshot::State;
    use tokio::sync::watch;

    use super::*;
    use crate::health::Health;
    use crate::metrics::Metrics;

    fn process(pid: usize, pod: &str, allocated: u64) -> Foreign {
        serde_json::from_value(serde_json::json!({
            "process": {"pid": pid, "start": 1}, "name": "python3", "measured": 0, "allocated": allocated,
            "owner": {"namespace": "ml", "pod": pod, "container": "main"},
            "managed": 0, "inexact": false, "idle_seconds": 0.0, "seen": {},
        }))
        .unwrap()
    }

    fn scrape(processes: Vec<Foreign>) -> Vec<String> {
        let (_sender, state) = watch::channel(Arc::new(State { processes, ..State::default() }));
        let text = Metrics::new(state, Health::new()).text().unwrap();
        let lines = text.lines().filter(|line| line.starts_with("nvshare_foreign_pod_allocated_bytes{"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn processes_of_one_container_are_one_series_that_vanishes_with_the_pod() {
        let series = |pod: &str, bytes: u64| {
            format!(
                "nvshare_foreign_pod_allocated_bytes{{namespace=\"ml\",pod=\"{pod}\",container=\"main\"}} {bytes}"
            )
        };
        let all = vec![process(1, "a", 100), process(2, "b", 7), process(3, "a", 20)];
        assert_eq!(scrape(all), [series("a", 120), series("b", 7)]);
        assert_eq!(scrape(vec![process(2, "b", 7)]), [series("b", 7)]);
        assert_eq!(scrape(Vec::new()), Vec::<String>::new());
    }

    #[test]
    fn containers_beyond_the_limit_are_one_series_and_nothing_is_lost() {
        let processes: Vec<Foreign> = (0..1000).map(|n| process(n, &format!("pod-{n}"), n as u64)).collect();
        let owners = by_owner(&processes);
        assert_eq!(owners.len(), OWNERS + 1);
        assert_eq!(owners[0], (["ml", "pod-999", "main"], Bytes(999)));
        assert_eq!(owners[OWNERS].0, ["", "", "other"]);
        assert_eq!(owners.iter().map(|(_, bytes)| bytes.0).sum::<u64>(), 999 * 1000 / 2);
    }
}
