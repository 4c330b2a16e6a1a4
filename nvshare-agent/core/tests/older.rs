//! `status` and `top` read what an agent of another release says. `states` has what each release said, with everything in it
//! that it can say: a figure that is new since then must be one that may be missing (`#[serde(default)]`), and what was said
//! keeps its name and its meaning. Written once for each release, and never changed.

use std::fs;
use std::path::Path;

use nvshare_agent_core::snapshot::State;
use serde_json::Value;

#[test]
fn the_state_of_each_release_is_read_and_nothing_of_it_is_lost() {
    let states = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/states");
    let mut read = 0;
    for file in fs::read_dir(states).expect("the states") {
        let path = file.expect("a state").path();
        let said: Value = serde_json::from_slice(&fs::read(&path).expect("a state")).expect("JSON");
        let state: State = serde_json::from_value(said.clone())
            .unwrap_or_else(|why| panic!("{}: {why}; what is new needs `#[serde(default)]`", path.display()));
        let lost = lost(&said, &serde_json::to_value(&state).expect("JSON"), "");
        assert!(lost.is_empty(), "of {} is lost: {}", path.display(), lost.join(", "));
        read += 1;
    }
    assert!(read > 0);
}

/// Where `again` has not what was `said`.
fn lost(said: &Value, again: &Value, place: &str) -> Vec<String> {
    match (said, again) {
        (Value::Object(said), Value::Object(again)) => said
            .iter()
            .flat_map(|(name, said)| {
                lost(said, again.get(name).unwrap_or(&Value::Null), &format!("{place}/{name}"))
            })
            .collect(),
        (Value::Array(said), Value::Array(again)) if said.len() == again.len() => {
            said.iter().zip(again).flat_map(|(said, again)| lost(said, again, place)).collect()
        }
        _ if said == again => Vec::new(),
        _ => vec![format!("{place}: {said} is {again}")],
    }
}
