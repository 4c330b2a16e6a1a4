//! Scripts: what a test program does, call by call, in a form that can be written down, read again and shortened.

use std::fmt;

/// What can be done, and what it is done with. Numbers name slots unless they are sizes; streams are 0 (null), 1 (legacy),
/// 2 (the thread's own) and slots from 3 on.
pub(crate) const VERBS: &[(&str, &[&str])] = &[
    ("ctx_create", &["c", "device"]),
    ("ctx_destroy", &["c"]),
    ("retain", &["c", "device"]),
    ("release", &["device"]),
    ("reset", &["device"]),
    ("state", &["device"]),
    ("set", &["c"]),
    ("unset", &[]),
    ("push", &["c"]),
    ("pop", &[]),
    ("ctx_sync", &[]),
    ("peer_on", &["c"]),
    ("peer_off", &["c"]),
    ("stack", &["bytes"]),
    ("stream", &["s", "flags"]),
    ("stream_end", &["s"]),
    ("stream_sync", &["s"]),
    ("stream_query", &["s"]),
    ("stream_wait", &["s", "e"]),
    ("stream_ctx", &["s"]),
    ("event", &["e"]),
    ("event_end", &["e"]),
    ("record", &["e", "s"]),
    ("event_sync", &["e"]),
    ("event_query", &["e"]),
    ("module", &["k"]),
    ("module_end", &["k"]),
    ("alloc", &["m", "bytes"]),
    ("pitch", &["m", "width", "height"]),
    ("managed", &["m", "bytes"]),
    ("free", &["m", "at"]),
    ("alloc_async", &["m", "bytes", "s"]),
    ("alloc_pool", &["m", "bytes", "s"]),
    ("free_async", &["m", "s"]),
    ("threshold", &["device", "bytes"]),
    ("trim", &["device"]),
    ("books", &["device"]),
    ("host", &["m", "bytes"]),
    ("host_free", &["m"]),
    ("register", &["m", "bytes"]),
    ("unregister", &["m"]),
    ("reserve", &["m", "bytes"]),
    ("unreserve", &["m"]),
    ("create", &["h", "bytes", "device", "types"]),
    ("export", &["h", "kind"]),
    ("drop", &["h"]),
    ("map", &["m", "at", "h"]),
    ("unmap", &["m", "at", "bytes"]),
    ("access", &["m", "at", "bytes", "device", "flags"]),
    ("regain", &["h", "m", "at"]),
    ("properties", &["h"]),
    ("set8", &["m", "at", "bytes", "value", "s", "async"]),
    ("set32", &["m", "at", "bytes", "value", "s", "async"]),
    ("set2d", &["m", "at", "pitch", "width", "height", "value", "s", "async"]),
    ("h2d", &["m", "at", "bytes", "seed", "s", "async"]),
    ("d2h", &["m", "at", "bytes", "s", "async"]),
    ("copy", &["m", "at", "from", "at2", "bytes", "s", "kind"]),
    ("copy2d", &["m", "at", "from", "at2", "width", "height", "s", "async"]),
    ("copy3d", &["m", "at", "from", "at2", "width", "height", "depth", "s", "kind"]),
    ("fill", &["m", "at", "bytes", "seed", "s"]),
    ("step", &["m", "at", "bytes", "add", "s"]),
    ("sum", &["m", "at", "bytes", "s"]),
    ("spin", &["s", "ns"]),
    ("host_func", &["s"]),
    ("begin", &["s", "mode"]),
    ("end", &["s", "g"]),
    ("graph_end", &["g"]),
    ("instantiate", &["x", "g"]),
    ("exec_end", &["x"]),
    ("launch", &["x", "s"]),
    ("array", &["m", "height", "channels"]),
    ("array_end", &["m"]),
    ("array_hash", &["m"]),
    ("to_array", &["m", "x", "y", "from", "at2", "width", "height", "s", "kind"]),
    ("from_array", &["m", "x", "y", "to", "at2", "width", "height", "s", "kind"]),
    ("array_row", &["m", "x", "with", "at2", "bytes", "out"]),
    ("array_copy", &["m", "x", "x2", "from", "width", "height", "s", "kind"]),
    ("graph_memory", &["x", "g", "m", "at", "bytes", "value", "kind"]),
    ("captured_memory", &["m", "at", "bytes", "value", "s"]),
    ("graph_trim", &["device"]),
    ("graph_books", &["device"]),
    ("info", &[]),
    ("total", &["device"]),
    ("attribute", &["m", "at", "number"]),
    ("attributes", &["m", "at", "mask"]),
    ("range", &["m", "at"]),
    ("access_of", &["m", "at", "device"]),
    ("retain_of", &["m", "at"]),
    ("memops", &["m", "at"]),
    ("lend", &["m", "at"]),
    ("lent_set", &["m", "at", "bytes", "value"]),
    ("lent_hash", &["m", "at", "bytes"]),
    ("lent_range", &["m", "at"]),
    ("unlend", &["m"]),
    ("swap", &["kind"]),
];

/// The verbs in a list with commas; or which there are, where one is none.
pub(crate) fn verbs(list: &str) -> Result<Vec<&'static str>, String> {
    let all = || VERBS.iter().map(|(verb, _)| *verb);
    let one = |name: &str| {
        all().find(|verb| *verb == name).ok_or_else(|| {
            format!("no step is called `{name}`: expected of {}", all().collect::<Vec<_>>().join(", "))
        })
    };
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(one).collect()
}

#[test]
fn steps_that_do_not_exist_are_refused_with_those_that_do() {
    assert_eq!(verbs("h2d, swap,").unwrap(), ["h2d", "swap"]);
    assert!(verbs("").unwrap().is_empty());
    let why = verbs("h2d,h2h").unwrap_err();
    assert!(why.contains("`h2h`") && VERBS.iter().all(|(verb, _)| why.contains(verb)), "{why}");
}

/// One step of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Op {
    /// The thread that does it.
    pub(crate) thread: usize,
    /// What, an index of [`VERBS`].
    verb: usize,
    /// With what.
    pub(crate) args: Vec<u64>,
}

impl Op {
    pub(crate) fn new(thread: usize, verb: &str, args: &[u64]) -> Op {
        let verb =
            VERBS.iter().position(|(name, _)| *name == verb).unwrap_or_else(|| panic!("no verb {verb}"));
        assert_eq!(VERBS[verb].1.len(), args.len(), "{}", VERBS[verb].0);
        Op { thread, verb, args: args.to_vec() }
    }

    pub(crate) fn verb(&self) -> &'static str {
        VERBS[self.verb].0
    }

    /// From one line of text.
    pub(crate) fn parse(line: &str) -> Option<Op> {
        let mut words = line.split_whitespace();
        let thread = words.next()?.strip_prefix('t')?.parse().ok()?;
        let name = words.next()?;
        let (_, names) = VERBS.iter().find(|(verb, _)| *verb == name)?;
        let values: Vec<_> = words
            .zip(*names)
            .map(|(word, name)| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
            .collect();
        let args: Vec<u64> = values.into_iter().collect::<Option<_>>()?;
        (args.len() == names.len()).then(|| Op::new(thread, name, &args))
    }
}

impl fmt::Display for Op {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, names) = VERBS[self.verb];
        write!(to, "t{} {name}", self.thread)?;
        names.iter().zip(&self.args).try_for_each(|(name, value)| write!(to, " {name}={value}"))
    }
}

/// A script, and how its threads run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Script {
    /// What it was made from, or 0.
    pub(crate) seed: u64,
    /// Its threads run freely, each with things of its own; else one does a step, then another, in the script's order.
    pub(crate) free: bool,
    /// The steps.
    pub(crate) ops: Vec<Op>,
}

impl Script {
    /// How many threads take part.
    pub(crate) fn threads(&self) -> usize {
        self.ops.iter().map(|op| op.thread + 1).max().unwrap_or(1)
    }

    /// Scripts from text: each begins with `# SEED` or `# SEED free`.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Script>, String> {
        let mut scripts: Vec<Script> = Vec::new();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("//")) {
            if let Some(head) = line.strip_prefix('#') {
                let mut words = head.split_whitespace();
                let seed =
                    words.next().and_then(|seed| seed.parse().ok()).ok_or(format!("not a seed: {line}"))?;
                scripts.push(Script { seed, free: words.next() == Some("free"), ops: Vec::new() });
            } else {
                let script = scripts.last_mut().ok_or("a script begins with `# SEED`")?;
                script.ops.push(Op::parse(line).ok_or(format!("not a step: {line}"))?);
            }
        }
        Ok(scripts)
    }
}

impl fmt::Display for Script {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(to, "# {}{}", self.seed, if self.free { " free" } else { "" })?;
        self.ops.iter().try_for_each(|op| writeln!(to, "{op}"))
    }
}
