//! Runs that are kept: `target/bench/NUMBER.json`, one after another.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::figure::Figure;
use crate::build;

fn directory() -> PathBuf {
    build::target().join("bench")
}

/// The numbers of the runs that are kept, the last one at the end.
fn numbers() -> Vec<u32> {
    let entries = fs::read_dir(directory()).into_iter().flatten().flatten();
    let mut numbers: Vec<u32> =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".json")?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// What was judged in the run in `file`, or in the last one, by the figures' names. Nothing if there was none.
pub(super) fn earlier(file: Option<&Path>) -> Result<BTreeMap<String, f64>> {
    let last = numbers().last().map(|number| directory().join(format!("{number}.json")));
    let Some(path) = file.map(Path::to_owned).or(last) else { return Ok(BTreeMap::new()) };
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let figures: Vec<Figure> = serde_json::from_str(&text)
        .with_context(|| format!("{} is no run of this release", path.display()))?;
    Ok(figures.iter().map(|figure| (figure.what.clone(), figure.value())).collect())
}

/// Keeps a run: where.
pub(super) fn keep(figures: &[Figure]) -> Result<PathBuf> {
    let next = numbers().last().map_or(1, |last| last + 1);
    let path = directory().join(format!("{next}.json"));
    fs::create_dir_all(directory()).with_context(|| format!("cannot create {}", directory().display()))?;
    fs::write(&path, serde_json::to_string_pretty(figures)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
