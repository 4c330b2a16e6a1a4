//! The configuration file, and where each value came from: a flag comes before the environment, the environment before
//! the file, the file before the default. The file's keys are the names of the flags; its values go through the same
//! door as those of the flags, so they are checked and refused in the same way.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches};
use serde_json::{Value, json};
use toml::Table;

use super::{Cli, Config};

/// The file that is read when none is named and it exists.
pub const FILE: &str = "/etc/nvshare/agent.toml";
/// The flag that names another one; no key of the file itself.
const FLAG: &str = "config";
/// How many names are offered for one that is not known.
const OFFERED: usize = 3;

/// A configuration that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// The command line, or the environment, or a question for help.
    #[error(transparent)]
    Line(#[from] clap::Error),
    /// The file cannot be read.
    #[error("cannot read {}: {source}; name another file with --config, or none", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not TOML: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with the line.
        source: toml::de::Error,
    },
    /// A key that means nothing.
    #[error("{}: there is no `{key}`; did you mean {}? (`nvshare-agent config` shows all)", path.display(), near.join(", "))]
    Key {
        /// The file.
        path: PathBuf,
        /// As it is written there.
        key: String,
        /// Those that look most like it.
        near: Vec<String>,
    },
    /// A value of the wrong kind.
    #[error("{}: `{key}` is {found}: expected {expected}", path.display())]
    Kind {
        /// The file.
        path: PathBuf,
        /// Of which key.
        key: String,
        /// What it is.
        found: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A value that its flag refuses.
    #[error("{}: {why}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// What the flag would say.
        why: String,
    },
}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The command line.
    Flag,
    /// This variable.
    Environment(String),
    /// This file.
    File(PathBuf),
    /// Nothing was said.
    Default,
}

/// One value in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Origin {
    /// The flag's name.
    pub name: String,
    /// What it is: a text, several, a truth, or nothing where the default depends on the node.
    pub value: Value,
    /// Where it came from.
    pub source: Source,
}

/// A command line with what the environment and the file add to it.
#[derive(Debug)]
pub struct Parsed {
    /// What to do.
    pub cli: Cli,
    /// The agent's configuration, value by value.
    pub origins: Vec<Origin>,
}

/// Reads the command line, the environment and the file. `usual` is read when no file is named and it exists.
pub fn parse(mut line: Vec<OsString>, usual: &Path) -> Result<Parsed, ParseError> {
    let matches = Cli::command().try_get_matches_from(&line)?;
    let arguments = arguments();
    let (given, runs) = level(&matches);
    let chosen = if runs { given.get_one::<PathBuf>("config_file").cloned() } else { None };
    let path = chosen.clone().unwrap_or_else(|| usual.to_owned());
    let table = match read(&path) {
        Ok(table) => table,
        Err(ParseError::Read { source, .. })
            if chosen.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
        {
            Table::new()
        }
        // Who asks a running agent needs no more of the file than where the agent is.
        Err(_) if !runs => Table::new(),
        Err(error) => return Err(error),
    };
    let mut from_file = Vec::new();
    for (key, value) in &table {
        let argument = arguments.iter().find(|argument| argument.get_long() == Some(key.as_str()));
        let Some(argument) = argument else {
            if runs {
                return Err(ParseError::Key { path, key: key.clone(), near: near(key, &arguments) });
            }
            continue;
        };
        let more = flags(argument, value).map_err(|(found, expected)| ParseError::Kind {
            path: path.clone(),
            key: key.clone(),
            found,
            expected,
        });
        let known = given.try_contains_id(argument.get_id().as_str()).is_ok();
        if known
            && matches!(
                given.value_source(argument.get_id().as_str()),
                None | Some(ValueSource::DefaultValue)
            )
        {
            line.extend(more?);
            from_file.push(key.clone());
        }
    }
    let matches = Cli::command().try_get_matches_from(&line).map_err(|error| {
        // The line alone was good: it is a value of the file.
        let text = error.to_string();
        let why = text.lines().take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        ParseError::Value { path: path.clone(), why: why.trim_start_matches("error: ").to_owned() }
    })?;
    let (given, _) = level(&matches);
    let origins = if runs { origins(given, &arguments, &from_file, &path) } else { Vec::new() };
    Ok(Parsed { cli: Cli::from_arg_matches(&matches)?, origins })
}

/// The arguments that configure something, and whether they configure the agent itself.
fn level(matches: &ArgMatches) -> (&ArgMatches, bool) {
    match matches.subcommand() {
        None => (matches, true),
        Some(("run" | "config", matches)) => (matches, true),
        Some((_, matches)) => (matches, false),
    }
}

/// Everything that can be in the file.
fn arguments() -> Vec<Arg> {
    let command = Config::augment_args(clap::Command::new("agent"));
    command.get_arguments().filter(|argument| argument.get_long() != Some(FLAG)).cloned().collect()
}

fn read(path: &Path) -> Result<Table, ParseError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ParseError::Read { path: path.to_owned(), source })?;
    text.parse().map_err(|source| ParseError::Syntax { path: path.to_owned(), source })
}

/// A value of the file as it would stand on the command line; or what it is, and what it should be.
fn flags(argument: &Arg, value: &toml::Value) -> Result<Vec<OsString>, (&'static str, &'static str)> {
    let name = argument.get_long().unwrap_or_default();
    let one = |value: &toml::Value| match value {
        toml::Value::String(text) => Ok(format!("--{name}={text}").into()),
        toml::Value::Integer(number) => Ok(format!("--{name}={number}").into()),
        toml::Value::Float(number) => Ok(format!("--{name}={number}").into()),
        other => Err((other.type_str(), "a text or a number")),
    };
    match (argument.get_action(), value) {
        (ArgAction::SetTrue, toml::Value::Boolean(true)) => Ok(vec![format!("--{name}").into()]),
        (ArgAction::SetTrue, toml::Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, other) => Err((other.type_str(), "true or false")),
        (ArgAction::Append, toml::Value::Array(values)) => values.iter().map(one).collect(),
        (_, value) => Ok(vec![one(value)?]),
    }
}

fn origins(given: &ArgMatches, arguments: &[Arg], from_file: &[String], path: &Path) -> Vec<Origin> {
    let origin = |argument: &Arg| {
        let name = argument.get_long()?.to_owned();
        let id = argument.get_id().as_str();
        let source = match given.value_source(id) {
            _ if from_file.contains(&name) => Source::File(path.to_owned()),
            Some(ValueSource::CommandLine) => Source::Flag,
            Some(ValueSource::EnvVariable) => {
                let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned());
                Source::Environment(variable.unwrap_or_default())
            }
            _ => Source::Default,
        };
        let texts = given.get_raw(id).into_iter().flatten().map(|text| text.to_string_lossy().into_owned());
        let mut texts: Vec<String> = texts.collect();
        let value = match argument.get_action() {
            ArgAction::SetTrue => json!(given.get_flag(id)),
            ArgAction::Append => json!(texts),
            _ => texts.pop().map_or(Value::Null, Value::from),
        };
        Some(Origin { name, value, source })
    };
    arguments.iter().filter_map(origin).collect()
}

/// The names most like `key`, the most like it first.
fn near(key: &str, arguments: &[Arg]) -> Vec<String> {
    let mut names: Vec<&str> = arguments.iter().filter_map(Arg::get_long).collect();
    names.sort_by_key(|name| (distance(key, name), *name));
    names.into_iter().take(OFFERED).map(|name| format!("`{name}`")).collect()
}

/// How many letters must be put in, taken out or exchanged to make one word of the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, letter) in from.chars().enumerate() {
        let mut corner = row[0];
        row[0] = done + 1;
        for (place, other) in to.iter().enumerate() {
            let exchanged = corner + usize::from(letter != *other);
            corner = row[place + 1];
            row[place + 1] = exchanged.min(corner + 1).min(row[place] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Command;

    /// With this text in the file that is read.
    fn with(text: &str, line: &[&str]) -> Result<Parsed, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        let line = ["nvshare-agent"].iter().chain(line).map(OsString::from).collect();
        parse(line, &path).map_err(|error| error.to_string())
    }

    fn origin(parsed: &Parsed, name: &str) -> (Value, Source) {
        let origin = parsed.origins.iter().find(|origin| origin.name == name).unwrap();
        let source = match &origin.source {
            Source::File(path) => Source::File(path.file_name().unwrap().into()),
            other => other.clone(),
        };
        (origin.value.clone(), source)
    }

    #[test]
    fn a_flag_comes_before_the_file_and_the_file_before_the_default() {
        let text = "reserve = \"128M\"\nlease-floor = \"2s\"\nlease-factor = 12.5\nno-uprobes = true\n\
                    libcuda = [\"/a\", \"/b\"]\n";
        for command in [&[][..], &["run"], &["config"]] {
            let parsed = with(text, &[command, &["--lease-floor", "1s"]].concat()).unwrap();
            let file = Source::File("agent.toml".into());
            assert_eq!(origin(&parsed, "lease-floor"), (json!("1s"), Source::Flag));
            assert_eq!(origin(&parsed, "reserve"), (json!("128M"), file.clone()));
            assert_eq!(origin(&parsed, "libcuda"), (json!(["/a", "/b"]), file.clone()));
            assert_eq!(origin(&parsed, "no-uprobes"), (json!(true), file));
            assert_eq!(origin(&parsed, "stall"), (json!("10s"), Source::Default));
            assert_eq!(origin(&parsed, "capacity"), (Value::Null, Source::Default));
        }
        let config = with(text, &[]).unwrap().cli.config;
        let (shared, observed) = (config.conductor, config.observer);
        assert_eq!((shared.reserve.0, shared.lease_factor, observed.libcuda.len()), (128 << 20, 12.5, 2));
        assert!(observed.no_uprobes);
    }

    #[test]
    fn what_makes_no_sense_in_the_file_is_refused_with_the_file_the_key_and_what_was_expected() {
        for (text, parts) in [
            ("lease_flor = \"1s\"", &["agent.toml", "`lease_flor`", "did you mean `lease-floor`"][..]),
            ("capacity = \"16X\"", &["agent.toml", "--capacity", "16X", "16G"]),
            ("no-uprobes = \"yes\"", &["agent.toml", "`no-uprobes` is string", "true or false"]),
            ("reserve = [1]", &["agent.toml", "`reserve` is array", "a text or a number"]),
            ("[lease]\nfloor = \"1s\"", &["agent.toml", "there is no `lease`"]),
            ("config = \"/x\"", &["there is no `config`"]),
            ("reserve = \n", &["agent.toml is not TOML", "line 1"]),
        ] {
            let error = with(text, &["run"]).unwrap_err();
            assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_that_was_named_must_be_there_and_the_usual_one_need_not() {
        let line =
            |more: &[&str]| ["nvshare-agent"].iter().chain(more).map(OsString::from).collect::<Vec<_>>();
        let nowhere = Path::new("/nowhere/agent.toml");
        assert!(parse(line(&[]), nowhere).is_ok());
        let error = parse(line(&["--config", "/nowhere/else.toml"]), nowhere).unwrap_err().to_string();
        assert!(error.contains("/nowhere/else.toml") && error.contains("--config"), "{error}");
    }

    #[test]
    fn commands_find_the_agent_where_its_file_puts_it_and_care_for_nothing_else_in_it() {
        let text = "admin-socket = \"/run/elsewhere/admin.sock\"\nnonsense = 1\n";
        let socket = |line: &[&str]| match with(text, line).unwrap().cli.command {
            Some(Command::Status(args)) => args.admin.admin_socket,
            other => panic!("{other:?}"),
        };
        assert_eq!(socket(&["status"]), Path::new("/run/elsewhere/admin.sock"));
        assert_eq!(socket(&["status", "--admin-socket", "/run/x/a"]), Path::new("/run/x/a"));
    }
}
