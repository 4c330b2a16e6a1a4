//! The floors of a crate: a module may use those below it, never one above. The table is the one at the head of its
//! `src/lib.rs`, from the row `| floor | ...` on; what uses what is read from the sources. For tests of the crates that are
//! built so.

mod reader;

use std::collections::BTreeMap;
use std::path::Path;

use self::reader::{Arrow, Sources};

/// Where a module stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    floor: u32,
    /// Among all, from below: of two on one floor the one that is named first is below.
    rank: usize,
}

/// The table of floors as it stands in the head of a file, from the row `| floor | ...` on: in each row a number and the
/// modules of that floor, from below, each by its path. What is one module by right and lies in several places is joined by
/// a `+`.
fn floors(head: &str) -> BTreeMap<String, Place> {
    let lines = head.lines().map_while(|line| line.strip_prefix("//!")).map(str::trim);
    let rows =
        lines.skip_while(|line| !line.starts_with("| floor |")).take_while(|line| line.starts_with('|'));
    let mut modules = Vec::new();
    for row in rows.skip(2) {
        let cells: Vec<&str> = row.split('|').collect();
        let floor: u32 = cells[1].trim().parse().unwrap_or_else(|_| panic!("no floor: {row}"));
        modules.extend(cells[2].split(',').map(|module| (floor, module)));
    }
    // The table begins with the uppermost; on a floor the first is below.
    modules.sort_by_key(|(floor, _)| *floor);
    let mut places = BTreeMap::new();
    for (rank, (floor, pieces)) in modules.into_iter().enumerate() {
        for piece in pieces.split('+') {
            let piece = piece.trim().trim_matches('`').to_owned();
            let before = places.insert(piece, Place { floor, rank });
            assert_eq!(before, None, "{pieces} stands twice");
        }
    }
    places
}

/// The place of a file: that of itself, or of the innermost folder that has one.
fn place<'a>(places: &'a BTreeMap<String, Place>, file: &str) -> &'a Place {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let whole = |end: usize| path.len() == end || path.as_bytes()[end] == b'/';
    let fitting = places.iter().filter(|(piece, _)| path.starts_with(piece.as_str()) && whole(piece.len()));
    let place = fitting.max_by_key(|(piece, _)| piece.len());
    place.unwrap_or_else(|| panic!("{file} has no floor: put it into the table")).1
}

/// The arrows that go up.
fn upward(places: &BTreeMap<String, Place>, sources: &Sources) -> Vec<Arrow> {
    let is_up = |arrow: &Arrow| place(places, &arrow.to).rank > place(places, &arrow.from).rank;
    sources.arrows().into_iter().filter(is_up).collect()
}

/// Checks the crate whose `src` folder is `folder`: no module uses one above it, every file has a floor, and every module of
/// the table exists.
///
/// # Panics
/// With all arrows that go up, or with what the table has too much or too little.
pub fn check(folder: &Path) {
    let sources = Sources::read(folder);
    let places = floors(&std::fs::read_to_string(folder.join("lib.rs")).expect("the crate's lib.rs"));
    assert!(places.len() > 4, "these are all floors: {places:?}");
    for piece in places.keys() {
        let there = folder.join(piece).is_dir() || folder.join(format!("{piece}.rs")).is_file();
        assert!(there, "{piece} is in the table and not in {}", folder.display());
    }
    for file in sources.files().filter(|file| *file != "lib.rs") {
        place(&places, file);
    }
    let up: Vec<String> = upward(&places, &sources)
        .into_iter()
        .map(|Arrow { from, line, to }| {
            let [here, there] = [&from, &to].map(|file| place(&places, file).floor);
            format!("src/{from}:{line} (floor {here}) uses src/{to} (floor {there})")
        })
        .collect();
    assert!(up.is_empty(), "{} arrows go up:\n{}", up.len(), up.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_up_is_found_in_a_use_a_path_and_a_macro_and_one_down_is_none() {
        let head = "//! | floor | modules | |\n//! | --- | --- | --- |\n//! | 2 | `upper` | |\n\
                    //! | 1 | `lower`, `lowest/a` + `b` | |\n";
        let places = floors(head);
        assert_eq!(places["b"], Place { floor: 1, rank: 1 });
        let up = |text: &str| {
            let files = [("lower.rs", text), ("upper/mod.rs", ""), ("upper/part.rs", ""), ("b.rs", "")];
            let arrows = upward(&places, &Sources::of(&files));
            arrows.into_iter().map(|arrow| (arrow.line, arrow.to)).collect::<Vec<_>>()
        };
        let found = |line, to: &str| vec![(line, to.to_owned())];
        assert_eq!(up("use crate::upper;"), found(1, "upper/mod.rs"));
        assert_eq!(up("\nuse crate::{lower, upper::{self as above}};"), found(2, "upper/mod.rs"));
        assert_eq!(up("fn f() { crate::upper::part::g() }"), found(1, "upper/part.rs"));
        assert_eq!(up("macro_rules! m { () => { $crate::upper::f() } }"), found(1, "upper/mod.rs"));
        assert_eq!(up("mod tests {\n use super::super::upper::part::Item; }"), found(2, "upper/part.rs"));
        assert_eq!(up("use crate::b;"), found(1, "b.rs"), "named later on the same floor");
        for nobody in [
            "// crate::upper::f()\n/* crate::upper /* */ crate::upper */",
            "const A: &str = \"crate::upper::f\"; const B: &str = r#\"\" crate::upper::f\"#;",
            "fn f<'a>(c: char) -> bool { c == '\"' || c == '\\'' } // \" crate::upper::f",
            "use other::upper; use std::{upper::part};",
            "mod upper { pub fn f() {} } fn g() { self::upper::f() }",
        ] {
            assert_eq!(up(nobody), [], "{nobody}");
        }
    }
}
