//! Counts of calls as they are published: an array, because a state is made many times a second and has four of these for
//! each client; with names only where it is written out.

use std::fmt;

use nvshare_common::probe::Call;
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// By [`Call`]; written as a map from [`Call::name`], zeros too of the kinds that the shim counts as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls(pub [u64; Call::COUNT]);

impl Calls {
    /// Names with their counts. Of the kinds that only the uprobes count, those there are: most processes have none of most.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let told = |call: &&Call| call.is_compared() || self.0[**call as usize] > 0;
        Call::ALL.iter().filter(told).map(|call| (call.name(), self.0[*call as usize]))
    }

    /// Makes one of each two counts.
    pub(super) fn combine(&mut self, other: &Calls, of: fn(u64, u64) -> u64) {
        for (count, other) in self.0.iter_mut().zip(other.0) {
            *count = of(*count, other);
        }
    }
}

impl Serialize for Calls {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        for (name, count) in self.iter() {
            map.serialize_entry(name, &count)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Calls {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Calls, D::Error> {
        struct Named;
        impl<'de> Visitor<'de> for Named {
            type Value = Calls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from names of calls to counts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Calls, A::Error> {
                let mut calls = Calls::default();
                while let Some((name, count)) = map.next_entry::<String, u64>()? {
                    // Another release may count what this one does not know.
                    if let Some(call) = Call::ALL.iter().find(|call| call.name() == name) {
                        calls.0[*call as usize] = count;
                    }
                }
                Ok(calls)
            }
        }
        from.deserialize_map(Named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_by_name_and_read_again() {
        let calls = Calls(std::array::from_fn(|index| index as u64));
        let text = serde_json::to_value(calls).unwrap();
        assert_eq!((&text["alloc"], &text["launch"]), (&0.into(), &(Call::Launch as u64).into()));
        assert_eq!(serde_json::from_value::<Calls>(text).unwrap(), calls);
        let newer = serde_json::json!({"launch": 3, "something_new": 9});
        assert_eq!(serde_json::from_value::<Calls>(newer).unwrap().0[Call::Launch as usize], 3);
    }
}
