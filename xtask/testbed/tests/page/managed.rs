//! The page on a node whose managed memory faults: whose, and how fast it moves.

use std::collections::BTreeSet;

use nvshare_testbed::{Artifacts, Client, Node, is_root, wait_for};

use super::browser::Browser;
use super::{LIMIT, console, picture};

const LEASES: [&str; 6] = ["--lease-floor", "500ms", "--lease-ceiling", "3s", "--reserve", "2M"];
/// The rows of the table: process, name, faults of the card and of the host, in, out, all.
const ROWS: &str = "return [...document.querySelectorAll('#paging tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))";

#[test]
fn the_page_shows_whose_managed_memory_faults_and_moves() {
    if !is_root() || Artifacts::find().ebpf().is_none() {
        return eprintln!("SKIPPED: uprobes need root and the built eBPF programs");
    }
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(why) => return eprintln!("SKIPPED: the status page is not tested in a browser: {why}"),
    };
    let node = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "800000000")
        .alone()
        .build();
    let agent = node.agent(LEASES.iter().chain(&["--uvm-counters"]));
    let over = node.path().join("over");
    let managed = |megabytes, seed| {
        let flags = format!(
            "--memory managed --bytes {megabytes}M --buffers 4 --seed {seed} --until {}",
            over.display()
        );
        node.workload(&flags)
    };
    let mut programs = [
        Client::start(&mut managed(64, 1).with_shim()),
        Client::start(&mut managed(64, 2).with_shim()),
        Client::start(&mut managed(24, 3)),
    ];
    browser.open(&format!("http://{}/", agent.address()));
    let pids: Vec<String> = programs.iter().map(|program| program.id().to_string()).collect();
    let mut seen = BTreeSet::new();
    // The two take turns, each of which begins with faults; the third has room once they do.
    wait_for("each of the two faults, and moves both ways, and the third has", 2 * LIMIT, || {
        let rows: Vec<Vec<String>> = serde_json::from_value(browser.ask(ROWS)).ok()?;
        for row in rows {
            let moves =
                [2, 4, 5, 6].into_iter().filter(|cell| !row[*cell].starts_with("0 B") && row[*cell] != "0/s");
            seen.extend(moves.map(|cell| (row[0].clone(), cell)));
        }
        let two = || pids[..2].iter().flat_map(|pid| [2, 4, 5, 6].map(|cell| (pid.clone(), cell)));
        (two().all(|one| seen.contains(&one)) && seen.contains(&(pids[2].clone(), 6))).then_some(())
    });
    assert!(seen.iter().all(|(pid, _)| pids.contains(pid)), "{seen:?}");
    if std::env::var_os("NVSHARE_UPDATE_SCREENSHOTS").is_some() {
        wait_for("turns", LIMIT, || (agent.state()["up_seconds"].as_f64()? > 15.0).then_some(()));
        browser.scheme("light");
        let height = browser.ask("return document.documentElement.scrollHeight").as_u64().expect("a height");
        browser.size(1240, height as u32);
        picture(&browser, "status-managed.png");
    }
    std::fs::write(over, "").expect("a file");
    for program in &mut programs {
        program.succeed();
    }
    wait_for("the page forgets them", LIMIT, || {
        (browser.ask("return document.getElementById('paging-section').hidden") == true).then_some(())
    });
    assert!(console(&browser).is_empty(), "{:?}", console(&browser));
    assert_eq!(browser.end(), Vec::<String>::new(), "left behind");
}
