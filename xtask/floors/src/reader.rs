//! Who uses whom in a crate, read from its sources: every path that begins with `crate`, `self` or `super`, or with a module
//! that the file declares, in `use` lines and anywhere else. Comments, strings and paths of other crates are nobody's use.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// One file uses something in another; both by their paths below the folder of the sources.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrow {
    pub from: String,
    pub line: usize,
    pub to: String,
}

/// The sources of a crate: the text of each file, by its path below their folder.
pub(crate) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// All files below `folder`.
    pub(crate) fn read(folder: &Path) -> Sources {
        let (mut files, mut folders) = (BTreeMap::new(), vec![folder.to_path_buf()]);
        while let Some(at) = folders.pop() {
            for entry in fs::read_dir(&at).expect("a folder of sources") {
                let path = entry.expect("its entry").path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|ending| ending == "rs") {
                    let name = path.strip_prefix(folder).expect("below it").to_str().expect("a name");
                    files.insert(name.to_owned(), fs::read_to_string(&path).expect("a source"));
                }
            }
        }
        Sources(files)
    }

    /// The same from texts.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Sources {
        Sources(files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect())
    }

    /// The names of all files.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Every use of one file by another, once for each pair: at its first line.
    pub(crate) fn arrows(&self) -> Vec<Arrow> {
        let modules: BTreeMap<Vec<String>, &str> = self.files().map(|file| (module(file), file)).collect();
        let mut arrows = BTreeMap::new();
        for (file, text) in &self.0 {
            let tokens = tokens(text);
            let mut walk = Walk { tokens: &tokens, at: 0, here: module(file), depth: 0, inner: Vec::new() };
            for (line, path) in walk.paths() {
                let known = (1..=path.len()).rev().find_map(|length| modules.get(&path[..length]));
                if let Some(to) = known.filter(|to| *to != file) {
                    arrows.entry((file.clone(), (*to).to_owned())).or_insert(line);
                }
            }
        }
        arrows.into_iter().map(|((from, to), line)| Arrow { from, line, to }).collect()
    }
}

/// The module that a file is.
fn module(file: &str) -> Vec<String> {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let path = path.strip_suffix("/mod").unwrap_or(path);
    match path {
        "lib" | "main" => Vec::new(),
        path => path.split('/').map(str::to_owned).collect(),
    }
}

/// A word, or a sign, and its line.
type Token = (usize, String);

/// What the compiler reads of `text`, without the contents of strings.
fn tokens(text: &str) -> Vec<Token> {
    let all: Vec<char> = text.chars().collect();
    let (mut found, mut at, mut line): (Vec<Token>, _, _) = (Vec::new(), 0, 1);
    let starts = |at: usize, with: &str| with.chars().enumerate().all(|(n, c)| all.get(at + n) == Some(&c));
    while at < all.len() {
        let from = at;
        if starts(at, "//") {
            while at < all.len() && all[at] != '\n' {
                at += 1;
            }
        } else if starts(at, "/*") {
            let mut depth = 0;
            loop {
                if starts(at, "/*") {
                    (depth, at) = (depth + 1, at + 2);
                } else if starts(at, "*/") {
                    (depth, at) = (depth - 1, at + 2);
                } else {
                    at += 1;
                }
                if depth == 0 || at >= all.len() {
                    break;
                }
            }
        } else if all[at].is_alphabetic() || all[at] == '_' {
            while at < all.len() && (all[at].is_alphanumeric() || all[at] == '_') {
                at += 1;
            }
            let word: String = all[from..at].iter().collect();
            let hashes = all[at..].iter().take_while(|c| **c == '#').count();
            if word.ends_with('r') && word.len() <= 2 && all.get(at + hashes) == Some(&'"') {
                let end = format!("\"{}", "#".repeat(hashes));
                at += hashes + 1;
                while at < all.len() && !starts(at, &end) {
                    at += 1;
                }
                at += end.len();
            } else {
                found.push((line, word));
            }
        } else if all[at] == '"' {
            at += 1;
            while at < all.len() && all[at] != '"' {
                at += if all[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if all[at] == '\'' {
            // A lifetime has no end.
            let ends = if all.get(at + 1) == Some(&'\\') {
                all[at + 3..].iter().position(|c| *c == '\'').map(|end| at + 3 + end)
            } else {
                (all.get(at + 2) == Some(&'\'')).then_some(at + 2)
            };
            at = ends.unwrap_or(at) + 1;
        } else if starts(at, "::") {
            found.push((line, "::".to_owned()));
            at += 2;
        } else {
            if !all[at].is_whitespace() {
                found.push((line, all[at].to_string()));
            }
            at += 1;
        }
        line += all[from..at.min(all.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

/// The way through the tokens of one file.
struct Walk<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The module that this is in.
    here: Vec<String>,
    /// Of braces.
    depth: usize,
    /// The depths of modules that are written in the file itself.
    inner: Vec<usize>,
}

impl Walk<'_> {
    fn word(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |(_, word)| word)
    }

    /// All paths of this crate that are named, with their lines.
    fn paths(&mut self) -> Vec<(usize, Vec<String>)> {
        let declares = |at: usize| self.word(at) == "mod" && self.word(at + 2) == ";";
        let children: BTreeSet<String> = (0..self.tokens.len())
            .filter(|at| declares(*at))
            .map(|at| self.word(at + 1).to_owned())
            .collect();
        let mut found = Vec::new();
        while self.at < self.tokens.len() {
            let (before, word) = (self.at.checked_sub(1).map_or("", |at| self.word(at)), self.word(self.at));
            match word {
                "mod" if self.word(self.at + 2) == "{" => {
                    self.here.push(self.word(self.at + 1).to_owned());
                    self.inner.push(self.depth);
                    (self.depth, self.at) = (self.depth + 1, self.at + 3);
                }
                "{" => (self.depth, self.at) = (self.depth + 1, self.at + 1),
                "}" => {
                    (self.depth, self.at) = (self.depth.saturating_sub(1), self.at + 1);
                    if self.inner.pop_if(|depth| *depth == self.depth).is_some() {
                        self.here.pop();
                    }
                }
                _ if before != "::" && self.word(self.at + 1) == "::" => {
                    let begin = match word {
                        "crate" => Some(Vec::new()),
                        "self" => Some(self.here.clone()),
                        "super" => Some(self.here[..self.here.len().saturating_sub(1)].to_vec()),
                        child if self.inner.is_empty() && children.contains(child) => {
                            Some([self.here.as_slice(), &[child.to_owned()]].concat())
                        }
                        _ => None,
                    };
                    self.at += 2;
                    if let Some(begin) = begin {
                        self.rest(begin, &mut found);
                    }
                }
                _ => self.at += 1,
            }
        }
        found
    }

    /// What follows `path::`: a name and perhaps more, or several in braces.
    fn rest(&mut self, mut path: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) {
        loop {
            let Some((line, word)) = self.tokens.get(self.at) else { return };
            match word.as_str() {
                "{" => {
                    self.at += 1;
                    while !matches!(self.word(self.at), "}" | "") {
                        match self.word(self.at) {
                            "," => self.at += 1,
                            _ => self.rest(path.clone(), found),
                        }
                    }
                    self.at += 1;
                    return;
                }
                "super" => drop(path.pop()),
                "self" => {}
                word => path.push(word.to_owned()),
            }
            self.at += 1;
            if self.word(self.at) == "::" {
                self.at += 1;
                continue;
            }
            if self.word(self.at) == "as" {
                self.at += 2;
            }
            found.push((*line, path));
            return;
        }
    }
}
