//! What stands below the help of each command: examples, and what its exit status says.

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
