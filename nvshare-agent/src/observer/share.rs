//! How the room for observed files is shared: a container may hold as many copies of a library as it likes, and must not
//! keep those of others from being observed. Pure.

use std::time::Instant;

use crate::pods;

/// No more files than this are observed at a time.
pub(super) const MOST: usize = 96;
/// No process brings more than this.
pub(super) const OF_ONE: usize = 8;
/// Under so many names in processes' maps a file is known.
const NAMES: usize = 16;

/// Who brought a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    /// The first directories of its cgroup: a pod's, or a service's. What a container makes below is the same owner's.
    pub group: String,
    /// The process.
    pub pid: u32,
}

impl Owner {
    /// A process, by its cgroup.
    pub(super) fn of(pid: u32) -> Owner {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let group = pods::cgroup::path(&text).split('/').filter(|name| !name.is_empty() && *name != "..");
        Owner { group: group.take(3).collect::<Vec<_>>().join("/"), pid }
    }
}

/// Whether there is room for one more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// Yes.
    There,
    /// Yes, if this one goes.
    For(usize),
    /// No; why.
    None(String),
}

/// Room for one more file of `owner` beside those of `owners` (nobody's stay in any case). Who has most gives way to who
/// has less, by groups and within a group by processes, and of his the one that was used least lately.
pub(super) fn room(owners: &[Option<&Owner>], owner: &Owner, used: impl Fn(usize) -> Instant) -> Room {
    let count = |same: &dyn Fn(&Owner) -> bool| owners.iter().flatten().filter(|other| same(other)).count();
    let by_group = |group: &str| count(&|other| other.group == group);
    let by_process = |pid: u32| count(&|other| other.pid == pid);
    if by_process(owner.pid) >= OF_ONE {
        return Room::None(format!("process {} brought {OF_ONE} libcuda files", owner.pid));
    }
    if owners.len() < MOST {
        return Room::There;
    }
    let none = || Room::None(format!("{MOST} libcuda files are observed already"));
    let Some(largest) = owners.iter().flatten().max_by_key(|other| by_group(&other.group)) else {
        return none();
    };
    let victims = |same: &dyn Fn(&Owner) -> bool| {
        let all = owners.iter().enumerate().filter(|(_, other)| other.is_some_and(same));
        all.map(|(index, _)| index).min_by_key(|index| used(*index))
    };
    if by_group(&owner.group) + 1 < by_group(&largest.group) {
        return victims(&|other| other.group == largest.group).map_or_else(none, Room::For);
    }
    let neighbours = owners.iter().flatten().filter(|other| other.group == owner.group);
    match neighbours.max_by_key(|other| by_process(other.pid)) {
        Some(most) if by_process(owner.pid) + 1 < by_process(most.pid) => {
            victims(&|other| other.pid == most.pid).map_or_else(none, Room::For)
        }
        _ => none(),
    }
}

/// Remembers under which name processes' maps have a file.
pub(super) fn remember(files: &mut Vec<String>, file: &str) {
    if !files.iter().any(|known| known == file) {
        if files.len() >= NAMES {
            files.remove(0);
        }
        files.push(file.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(group: &str, pid: u32) -> Owner {
        Owner { group: group.to_owned(), pid }
    }

    fn ask(all: &[Owner], newcomer: &Owner) -> Room {
        let now = Instant::now();
        let owners: Vec<Option<&Owner>> = all.iter().map(Some).collect();
        room(&owners, newcomer, |_| now)
    }

    #[test]
    fn one_process_brings_only_so_many() {
        let all = vec![owner("a", 1); OF_ONE];
        assert!(matches!(ask(&all, &owner("a", 1)), Room::None(_)));
        assert_eq!(ask(&all, &owner("a", 2)), Room::There);
    }

    #[test]
    fn a_group_with_many_files_gives_way_to_one_with_few() {
        let mut all: Vec<Owner> = (0..MOST as u32 - 1).map(|pid| owner("hostile", 100 + pid)).collect();
        all.insert(0, owner("quiet", 1));
        assert!(matches!(ask(&all, &owner("new", 2)), Room::For(index) if index > 0));
        assert!(matches!(ask(&all, &owner("hostile", 9999)), Room::None(_)));
    }

    #[test]
    fn within_a_group_a_process_with_many_files_gives_way() {
        let mut all: Vec<Owner> = (0..MOST as u32 - 3).map(|pid| owner("a", 100 + pid)).collect();
        all.extend(vec![owner("a", 7); 3]);
        assert!(matches!(ask(&all, &owner("a", 8)), Room::For(index) if index >= MOST - 3));
    }

    #[test]
    fn files_named_by_the_administrator_never_go() {
        let now = Instant::now();
        assert!(matches!(room(&vec![None; MOST], &owner("a", 1), |_| now), Room::None(_)));
    }
}
