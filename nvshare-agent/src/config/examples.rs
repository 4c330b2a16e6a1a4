//! What stands below the help of each command: examples, and what its exit status says.

use crate::admin::orders::examples as asking;

/// What scripts can tell from the exit status of a command that does its work by itself.
const OWN_STATUSES: &str = "Exit status: 0 done, 1 failed, 64 the command line or the file makes no sense.";

fn own(before: &str, lines: &[&str], statuses: &str) -> String {
    let lines: Vec<String> = lines.iter().map(|line| format!("  {line}")).collect();
    format!("{before}Examples:\n{}\n\n{statuses}", lines.join("\n"))
}

pub(super) fn run() -> String {
    let lines = [
        "nvshare-agent run",
        "nvshare-agent run --capacity 16G --reserve 256M --lease-ceiling 10s",
        "nvshare-agent run --config ./agent.toml --log debug",
    ];
    let statuses = "Exit status: 0 stopped by SIGTERM or SIGINT, 1 cannot run or failed, 64 the command line or the file \
                    makes no sense.";
    own("", &lines, statuses)
}

pub(super) fn config() -> String {
    let before = "A flag comes before the environment, the environment before the file. The file is TOML; its keys are \
                  the names of the flags:\n  reserve = \"256M\"\n  lease-ceiling = \"30s\"\n  no-uprobes = true\n\n";
    let lines = ["nvshare-agent config", "nvshare-agent config --config ./agent.toml --json | jq .reserve"];
    own(before, &lines, OWN_STATUSES)
}

pub(super) fn install_shim() -> String {
    let lines = [
        "nvshare-agent install-shim",
        "nvshare-agent install-shim --from ./libnvshare.so --to /var/lib/nvshare",
    ];
    own("", &lines, OWN_STATUSES)
}

pub(super) fn status() -> String {
    asking(&[
        ("nvshare-agent status", "for people"),
        ("nvshare-agent status --check", "the same; exit status 4 when the agent is not ready"),
        ("nvshare-agent status --json | jq '.state.clients[].name'", "for programs"),
    ])
}

pub(super) fn set() -> String {
    asking(&[
        ("nvshare-agent set lease-floor=200ms lease-ceiling=30s", "all of them or none"),
        ("nvshare-agent set lease floor=200ms", "the same in other words"),
        ("nvshare-agent set log=debug", "more lines in the log, until log=info"),
        ("nvshare-agent set priority 3 high", "for client 3"),
        ("nvshare-agent set weight 3 2", "twice the time of others"),
        ("nvshare-agent set limit 3 8G", "at most 8 GiB of each device"),
    ])
}

pub(super) fn top() -> String {
    let keys = "Keys: q quit, arrows choose a client, s sort, ? help. Where the output is no terminal, plain tables are \
                printed.\n\n";
    let examples = asking(&[
        ("nvshare-agent top", "the whole terminal, until q"),
        ("nvshare-agent top --every 5s --count 12 > a-minute.txt", "tables, for later"),
    ]);
    format!("{keys}{examples}")
}

pub(super) fn probes() -> String {
    asking(&[
        ("nvshare-agent probes", "for people"),
        ("nvshare-agent probes --json | jq '.attachments[] | {path, functions, refused}'", "for programs"),
    ])
}
