//! Which of the free shares a container should get: those of the GPUs with the fewest users. A pure function.

use std::collections::BTreeMap;

use nvshare_agent_core::snapshot::State;
use nvshare_common::bytes::Bytes;

use super::devices::{NoShare, Share};

/// How much a GPU is used already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Clients that hold or need memory there.
    pub clients: u32,
    /// What they need in order to run.
    pub needed: Bytes,
}

/// The load of each GPU, by UUID.
pub fn loads(state: &State) -> BTreeMap<String, Load> {
    let mut loads: BTreeMap<String, Load> = state
        .devices
        .iter()
        .map(|device| (device.uuid.clone(), Load { clients: 0, needed: device.needed }))
        .collect();
    for device in state.clients.iter().flat_map(|client| &client.devices) {
        if let Some(load) = loads.get_mut(&device.uuid) {
            load.clients += 1;
        }
    }
    loads
}

/// A request that nothing could satisfy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unanswerable {
    /// A device of somebody else.
    #[error(transparent)]
    NoShare(#[from] NoShare),
    /// Too few, or fewer than must be.
    #[error(
        "{wanted} devices wanted, of {available} that are free and with {included} that must be among them"
    )]
    Size {
        /// How many are wanted.
        wanted: i32,
        /// How many there are.
        available: usize,
        /// How many must be included.
        included: usize,
    },
}

/// `wanted` of `available`, those of `included` among them. Each next one is of the GPU that has the fewest users at
/// that point: what is not free was given to a pod, whose program may not have begun yet, so that the larger of shares
/// given away (of `shares`) and clients counts, and then the bytes its clients need.
pub fn prefer(
    available: &[String],
    included: &[String],
    wanted: i32,
    shares: u32,
    loads: &BTreeMap<String, Load>,
) -> Result<Vec<String>, Unanswerable> {
    let size = usize::try_from(wanted).ok().filter(|size| (included.len()..=available.len()).contains(size));
    let Some(size) = size else {
        return Err(Unanswerable::Size { wanted, available: available.len(), included: included.len() });
    };
    let mut free: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for id in available {
        let share: Share = id.parse()?;
        free.entry(share.gpu).or_default().push(share.number);
    }
    for numbers in free.values_mut() {
        // The smallest at the end, where it is taken from.
        numbers.sort_unstable_by(|one, other| other.cmp(one));
    }
    let mut users: BTreeMap<String, u32> = free
        .iter()
        .map(|(gpu, free)| {
            let given = shares.saturating_sub(free.len() as u32);
            (gpu.clone(), given.max(loads.get(gpu).map_or(0, |load| load.clients)))
        })
        .collect();
    let mut chosen = Vec::with_capacity(size);
    for id in included {
        let share: Share = id.parse()?;
        if let Some(numbers) = free.get_mut(&share.gpu) {
            numbers.retain(|number| *number != share.number);
        }
        *users.entry(share.gpu).or_default() += 1;
        chosen.push(id.clone());
    }
    while chosen.len() < size {
        let next = free.iter_mut().filter(|(_, numbers)| !numbers.is_empty()).min_by_key(|(gpu, _)| {
            let needed = loads.get(*gpu).map_or(Bytes::ZERO, |load| load.needed);
            (users.get(*gpu).copied().unwrap_or(0), needed)
        });
        // What must be included and is not available counts twice; the kubelet does not ask so.
        let Some((gpu, numbers)) = next else { break };
        let Some(number) = numbers.pop() else { break };
        *users.entry(gpu.clone()).or_default() += 1;
        chosen.push(Share { gpu: gpu.clone(), number }.to_string());
    }
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ids(gpu: &str, numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
        numbers.into_iter().map(|number| format!("{gpu}::{number}")).collect()
    }

    fn load(gpu: &str, clients: u32, needed: u64) -> (String, Load) {
        (gpu.to_owned(), Load { clients, needed: Bytes(needed) })
    }

    fn choose(available: &[Vec<String>], included: &[&str], wanted: i32, loads: &[(String, Load)]) -> String {
        let included: Vec<String> = included.iter().map(|id| (*id).to_owned()).collect();
        let loads = loads.iter().cloned().collect();
        prefer(&available.concat(), &included, wanted, 3, &loads).unwrap().join(" ")
    }

    #[test]
    fn the_gpu_with_the_fewest_clients_is_taken_then_the_one_that_has_to_hold_least() {
        let all = [ids("a", 0..3), ids("b", 0..3)];
        assert_eq!(choose(&all, &[], 1, &[load("a", 2, 0), load("b", 1, 9)]), "b::0");
        assert_eq!(choose(&all, &[], 1, &[load("a", 1, 9), load("b", 1, 5)]), "b::0");
        assert_eq!(choose(&all, &[], 1, &[]), "a::0");
    }

    #[test]
    fn a_share_that_was_given_away_counts_before_its_pod_begins() {
        assert_eq!(choose(&[ids("a", 1..3), ids("b", 0..3)], &[], 1, &[]), "b::0");
        assert_eq!(choose(&[ids("a", 1..3), ids("b", 0..3)], &[], 1, &[load("b", 2, 0)]), "a::1");
    }

    #[test]
    fn several_shares_go_to_several_gpus() {
        let all = [ids("a", 0..3), ids("b", 0..3)];
        assert_eq!(choose(&all, &[], 4, &[load("a", 1, 0)]), "b::0 a::0 b::1 a::1");
    }

    #[test]
    fn what_must_be_included_is_and_counts() {
        let all = [ids("a", 0..3), ids("b", 0..3)];
        assert_eq!(choose(&all, &["a::2"], 2, &[]), "a::2 b::0");
        assert_eq!(choose(&all, &["a::0"], 1, &[load("a", 3, 0)]), "a::0");
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused_with_its_numbers() {
        let available = ids("a", 0..2);
        for (included, wanted) in [(0, 3), (2, 1), (0, -1)] {
            let included = ids("a", 0..included);
            let error = prefer(&available, &included, wanted, 2, &BTreeMap::new()).unwrap_err();
            assert!(error.to_string().contains(&format!("{wanted} devices wanted, of 2")), "{error}");
        }
        let foreign = prefer(&["nonsense".to_owned()], &[], 1, 2, &BTreeMap::new());
        assert_eq!(foreign, Err(Unanswerable::NoShare(NoShare("nonsense".into()))));
    }

    proptest! {
        #[test]
        fn the_answer_is_always_as_large_as_wanted_and_of_what_is_free(
            free in proptest::collection::btree_set((0..3u32, 0..8u32), 1..20),
            keep in any::<prop::sample::Index>(),
            size in any::<prop::sample::Index>(),
            clients in proptest::array::uniform3(0..9u32),
        ) {
            let available: Vec<String> =
                free.iter().map(|(gpu, number)| format!("GPU-{gpu}::{number}")).collect();
            let included = available[..keep.index(available.len())].to_vec();
            let wanted = included.len() + size.index(available.len() - included.len() + 1);
            let loads = (0..3).map(|gpu| load(&format!("GPU-{gpu}"), clients[gpu], 0)).collect();
            let chosen = prefer(&available, &included, wanted as i32, 8, &loads).unwrap();
            let distinct: std::collections::BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!((chosen.len(), distinct.len()), (wanted, wanted));
            prop_assert!(chosen.iter().all(|id| available.contains(id)));
            prop_assert!(included.iter().all(|id| chosen.contains(id)));
        }
    }
}
