//! What the documents for developers say of the sources: that what they name is there, and that nothing is missing in
//! them that they promise to have.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use crate::command::root;

const ARCHITECTURE: &str = "docs/architecture.md";
const DEVELOPING: &str = "docs/developing.md";

fn text(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("cannot read {name}: {error}"))
}

/// The part of `text` from the heading `title` to the next of its level.
fn section<'a>(text: &'a str, title: &str) -> &'a str {
    let (_, rest) =
        text.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}"));
    rest.split("\n## ").next().unwrap_or(rest)
}

/// What stands between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Every file with one of these endings, but for what was built.
fn sources(endings: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder").map(|entry| entry.expect("an entry")) {
            let (path, kind) = (entry.path(), entry.file_type().expect("its kind"));
            let name = entry.file_name();
            if kind.is_dir() && name != "target" && name != ".git" {
                folders.push(path);
            } else if kind.is_file()
                && endings.iter().any(|ending| path.extension().is_some_and(|is| is == *ending))
            {
                found.push(path);
            }
        }
    }
    assert!(found.len() > 100, "{found:?}");
    found
}

/// Whether a function or macro of that name is defined in `source`.
fn defines(source: &str, name: &str) -> bool {
    ["fn ", "macro_rules! "].iter().any(|before| {
        source.match_indices(&format!("{before}{name}")).any(|(at, found)| {
            source[at + found.len()..].starts_with(|c: char| !c.is_alphanumeric() && c != '_')
        })
    })
}

#[test]
fn every_file_and_function_of_the_walks_exists() {
    let architecture = text(ARCHITECTURE);
    let (mut steps, mut base) = (0, String::new());
    for line in section(&architecture, "Four walks").lines() {
        if line.starts_with('#') {
            base.clear();
        }
        if let Some(folder) = line.strip_prefix("In `").and_then(|rest| rest.strip_suffix("`:")) {
            folder.clone_into(&mut base);
            continue;
        }
        for place in quoted(line).filter(|place| place.contains(".rs")) {
            let (file, function) =
                place.split_once(": ").map_or((place, None), |(file, name)| (file, Some(name)));
            let path =
                if root().join(file).is_file() { root().join(file) } else { root().join(&base).join(file) };
            let source = fs::read_to_string(&path)
                .unwrap_or_else(|error| panic!("{ARCHITECTURE}: `{place}`: {}: {error}", path.display()));
            if let Some(function) = function {
                assert!(
                    defines(&source, function),
                    "{ARCHITECTURE}: `{place}`: there is no function {function}"
                );
                steps += 1;
            }
        }
    }
    assert!(steps > 70, "the walks have {steps} steps: is their form another now?");
}

#[test]
fn a_function_that_is_not_there_is_found_out() {
    let source = "pub fn launched() {}\nmacro_rules! export {\n";
    assert!(defines(source, "launched") && defines(source, "export"));
    assert!(!defines(source, "launch") && !defines(source, "wait"));
}

#[test]
fn every_invariant_that_the_sources_cite_is_in_the_architecture() {
    let architecture = text(ARCHITECTURE);
    let invariants = section(&architecture, "Invariants");
    let is_number = |word: &&str| {
        let digits = word.strip_prefix(['S', 'A']).unwrap_or_default();
        (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut cited: BTreeMap<String, PathBuf> = BTreeMap::new();
    for path in sources(&["rs"]) {
        let source = fs::read_to_string(&path).expect("a source");
        let notes = source.lines().filter(|line| line.contains("//") || line.contains('"'));
        for word in
            notes.flat_map(|line| line.split(|c: char| !c.is_alphanumeric() && c != '_')).filter(is_number)
        {
            cited.entry(word.to_owned()).or_insert_with(|| path.clone());
        }
    }
    assert!(cited.len() > 10, "{cited:?}");
    for (number, path) in cited {
        let known = invariants.contains(&format!("- **{number}** "));
        assert!(known, "{} cites {number}, which {ARCHITECTURE} does not have", path.display());
    }
}

/// The variables that `text` names, without those that clap makes of the agent's flags: `nvshare-agent --help` has these.
fn variables(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c: char| !is_of_name(c));
    words
        .filter(|word| {
            word.strip_prefix("NVSHARE_").is_some_and(|rest| !rest.is_empty() && !rest.ends_with('_'))
        })
        .collect()
}

#[test]
fn every_variable_that_the_sources_name_is_in_the_table_and_the_other_way_round() {
    let developing = text(DEVELOPING);
    let rows = section(&developing, "Every environment variable");
    let known: BTreeSet<&str> =
        rows.lines().filter(|line| line.starts_with("| `")).flat_map(variables).collect();
    let here = Path::new("xtask/src/documents.rs");
    let mut used: BTreeMap<String, PathBuf> = BTreeMap::new();
    let mut flags = BTreeSet::new();
    for path in sources(&["rs", "py", "c"]) {
        if path.ends_with(here) {
            continue;
        }
        let source = fs::read_to_string(&path).expect("a source");
        for line in source.lines() {
            let of_flag = line.contains("env = \"NVSHARE_AGENT_");
            for name in variables(line) {
                if of_flag {
                    flags.insert(name.to_owned());
                }
                used.entry(name.to_owned()).or_insert_with(|| path.clone());
            }
        }
    }
    assert!(used.len() > 40 && flags.len() > 20, "{used:?}, {flags:?}");
    used.retain(|name, _| !flags.contains(name));
    for (name, path) in &used {
        let listed = known.contains(name.as_str());
        assert!(listed, "{} names {name}, which the table of {DEVELOPING} does not have", path.display());
    }
    for name in known {
        assert!(used.contains_key(name), "{DEVELOPING} has {name}, which no source names");
    }
}

#[test]
fn every_path_that_the_guide_names_exists() {
    let developing = text(DEVELOPING);
    let is_path = |word: &&str| {
        let starts = ["nvshare-", "xtask/", "docs/", "dashboards/", "deploy/"]
            .iter()
            .any(|start| word.starts_with(start));
        starts && word.contains('/') && !word.contains(['<', '*', ' ', '$'])
    };
    let mut paths = 0;
    for path in quoted(&developing).filter(is_path) {
        assert!(root().join(path).exists(), "{DEVELOPING} names {path}, which is not there");
        paths += 1;
    }
    assert!(paths > 30, "the guide names {paths} paths");
}

#[test]
fn every_test_that_the_guide_names_exists() {
    let developing = text(DEVELOPING);
    let is_sentence = |word: &&str| {
        word.matches('_').count() >= 4
            && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    let mut missing: BTreeSet<&str> = quoted(&developing).filter(is_sentence).collect();
    assert!(missing.len() > 5, "the guide names {missing:?}");
    for path in sources(&["rs"]) {
        let source = fs::read_to_string(&path).expect("a source");
        missing.retain(|name| !source.contains(&format!("fn {name}(")));
    }
    assert!(missing.is_empty(), "{DEVELOPING} names tests that are not there: {missing:?}");
}
