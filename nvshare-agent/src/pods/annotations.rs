//! What a pod wants of nvshare, in its annotations, and what of that makes no sense. Pure: who tells whom about a
//! problem is decided elsewhere.

use std::collections::BTreeMap;
use std::fmt;

use nvshare_agent_core::order::{Order, Priority, Weight, What};
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ClientId;
use serde::{Deserialize, Serialize};

use super::quantity;

/// All of ours begin with this.
const PREFIX: &str = "nvshare.com/";
/// The most memory of each device, as a quantity.
pub const MEMORY_LIMIT: &str = "nvshare.com/memory-limit";
/// `high`, `normal` or `low`.
pub const PRIORITY: &str = "nvshare.com/priority";
/// A number from 0.01 to 100.
pub const WEIGHT: &str = "nvshare.com/weight";

/// A limit below this was not meant: `8` for `8Gi`. It is one block, the smallest piece of memory that is moved.
const LEAST_LIMIT: Bytes = Bytes(2 << 20);
/// So much of a value is repeated in messages.
const SHOWN_CHARS: usize = 64;

/// The annotations of a pod that are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Annotations(BTreeMap<String, String>);

impl Annotations {
    /// Keeps what is ours.
    pub fn of<'a>(all: impl IntoIterator<Item = (&'a String, &'a String)>) -> Annotations {
        let ours = all.into_iter().filter(|(name, _)| name.starts_with(PREFIX));
        Annotations(ours.map(|(name, value)| (name.clone(), value.clone())).collect())
    }
}

/// An annotation that is ignored, and what holds instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Which.
    pub annotation: String,
    /// Its value and what was expected.
    pub why: String,
    /// What holds instead.
    pub instead: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "annotation {} is ignored, {}: {}", self.annotation, self.instead, self.why)
    }
}

/// What a client of the pod is to be ordered: everything that annotations can say, the default where they say nothing or
/// nothing sensible. So the orders undo those that an annotation brought that is there no more.
pub fn orders(annotations: &Annotations, client: ClientId) -> (Vec<Order>, Vec<Problem>) {
    let mut problems = Vec::new();
    let limit = value(annotations, MEMORY_LIMIT, "all of the device may be used", limit, &mut problems);
    let priority = value(annotations, PRIORITY, "the priority is normal", str::parse, &mut problems);
    let weight = value(annotations, WEIGHT, "the weight is 1", str::parse, &mut problems);
    let known = [MEMORY_LIMIT, PRIORITY, WEIGHT];
    for name in annotations.0.keys().filter(|name| !known.contains(&name.as_str())) {
        let why = format!("there is no such annotation: expected one of {}", known.join(", "));
        problems.push(Problem { annotation: shown(name), why, instead: "it changes nothing" });
    }
    let orders = [
        What::Limit(limit),
        What::Priority(priority.unwrap_or(Priority::default())),
        What::Weight(weight.unwrap_or(Weight::default())),
    ];
    (orders.map(|what| Order { client, what }).to_vec(), problems)
}

/// The value of one annotation, if it is there and makes sense.
fn value<T>(
    annotations: &Annotations,
    name: &str,
    instead: &'static str,
    read: impl FnOnce(&str) -> Result<T, String>,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    let text = shown(annotations.0.get(name)?.trim());
    read(&text).map_err(|why| problems.push(Problem { annotation: name.to_owned(), why, instead })).ok()
}

fn limit(text: &str) -> Result<Bytes, String> {
    let limit = quantity::bytes(text)?;
    if limit < LEAST_LIMIT {
        return Err(format!(
            "`{text}` is too little to run with: expected at least 2Mi, such as 8Gi, 8G or 8589934592"
        ));
    }
    Ok(limit)
}

/// Somebody else's text, short enough for a message and without control characters.
fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientId = ClientId(7);

    fn read(pairs: &[(&str, &str)]) -> (Vec<What>, Vec<Problem>) {
        let all: BTreeMap<String, String> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (orders, problems) = orders(&Annotations::of(&all), CLIENT);
        assert!(orders.iter().all(|order| order.client == CLIENT));
        (orders.into_iter().map(|order| order.what).collect(), problems)
    }

    fn defaults() -> [What; 3] {
        [What::Limit(None), What::Priority(Priority::Normal), What::Weight(Weight::default())]
    }

    #[test]
    fn a_pods_annotations_become_orders_for_its_clients() {
        let (orders, problems) = read(&[
            (MEMORY_LIMIT, "8Gi"),
            (PRIORITY, "high"),
            (WEIGHT, " 2.5 "),
            ("example.com/priority", "urgent"),
        ]);
        let weight = Weight::try_from(2.5).unwrap();
        let expected =
            [What::Limit(Some(Bytes(8 << 30))), What::Priority(Priority::High), What::Weight(weight)];
        assert_eq!((orders.as_slice(), problems), (&expected[..], vec![]));
    }

    #[test]
    fn without_annotations_the_orders_are_the_defaults() {
        assert_eq!(read(&[]), (defaults().to_vec(), vec![]));
    }

    #[test]
    fn a_bad_value_is_named_with_what_was_expected_and_the_default_holds() {
        for (name, value, expected, instead) in [
            (MEMORY_LIMIT, "8GiB", "8Gi, 8G or 8589934592", "all of the device"),
            (MEMORY_LIMIT, "-1", "8Gi, 8G or 8589934592", "all of the device"),
            (MEMORY_LIMIT, "8", "at least 2Mi", "all of the device"),
            (MEMORY_LIMIT, "", "8Gi, 8G or 8589934592", "all of the device"),
            (PRIORITY, "urgent", "high, normal or low", "priority is normal"),
            (WEIGHT, "0", "0.01 to 100", "weight is 1"),
            ("nvshare.com/prioritty", "high", "nvshare.com/priority", "changes nothing"),
        ] {
            let (orders, problems) = read(&[(name, value)]);
            assert_eq!(orders, defaults(), "{name}={value}");
            let [problem] = problems.as_slice() else { panic!("{name}={value}: {problems:?}") };
            let text = problem.to_string();
            for part in [name, expected, instead] {
                assert!(text.contains(part), "{text} says nothing of {part}");
            }
        }
    }

    #[test]
    fn one_bad_value_does_not_spoil_the_others() {
        let (orders, problems) = read(&[(MEMORY_LIMIT, "much"), (PRIORITY, "low")]);
        assert_eq!(orders[1], What::Priority(Priority::Low));
        assert_eq!(problems.len(), 1);
    }

    #[test]
    fn a_long_or_unprintable_value_does_not_get_into_messages() {
        let (_, problems) = read(&[(PRIORITY, &format!("\u{1b}[2J{}", "x".repeat(100_000)))]);
        assert!(problems[0].why.len() < 200 && !problems[0].why.contains('\u{1b}'), "{}", problems[0].why);
    }
}
