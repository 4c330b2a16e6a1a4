//! The status page in a real browser, against a node whose clients take turns: what it shows, that it follows, that it
//! asks nobody else, and that nothing stays behind. With `NVSHARE_UPDATE_SCREENSHOTS=1` it also writes the pictures of
//! the page in `docs/`. Needs Debian's packages `chromium` and `chromium-driver`; without them it says that it is skipped.

mod browser;
mod managed;

use std::path::Path;
use std::time::{Duration, Instant};

use browser::Browser;
use nvshare_testbed::{Agent, Client, Node, wait_for};

const LIMIT: Duration = Duration::from_mins(2);
/// How long after `/api/v1/state` the page shows a switch, as a rule. Half a second is what it takes.
const BEHIND: Duration = Duration::from_secs(1);
/// And at worst, on a machine on which everything else is busy too.
const FAR_BEHIND: Duration = Duration::from_secs(3);
/// Keys, as WebDriver names them.
const TAB: char = '\u{e004}';
const ENTER: char = '\u{e007}';
const RIGHT: char = '\u{e014}';
const LEASES: [&str; 6] = ["--lease-floor", "500ms", "--lease-ceiling", "700ms", "--reserve", "2M"];

fn node() -> Node {
    Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "200000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        // Programs without the library are listed too.
        .alone()
        .build()
}

/// Four clients of which each wants two thirds of the card.
fn clients(node: &Node, seconds: u32) -> Vec<Client> {
    let start = |seed| {
        let flags = format!("--bytes 64M --buffers 4 --seed {seed} --seconds {seconds}");
        Client::start(&mut node.workload(&flags).with_shim())
    };
    (1..=4).map(start).collect()
}

fn switches(agent: &Agent) -> u64 {
    agent.state()["switches"]["count"].as_u64().expect("the number of switches")
}

fn shown_switches(browser: &Browser) -> u64 {
    let shown = browser.ask("return Number(document.getElementById('switch-count').textContent)");
    shown.as_u64().expect("a number of switches on the page")
}

#[test]
fn the_page_shows_four_clients_and_follows_their_switches() {
    let browser = match Browser::start() {
        Ok(browser) => browser,
        Err(why) => return eprintln!("SKIPPED: the status page is not tested in a browser: {why}"),
    };
    let pictures = std::env::var_os("NVSHARE_UPDATE_SCREENSHOTS").is_some();
    let node = node();
    let agent = node.agent(LEASES);
    let mut clients = clients(&node, if pictures { 60 } else { 25 });
    wait_for("the clients take turns", LIMIT, || (switches(&agent) >= 2).then_some(()));

    browser.open(&format!("http://{}/", agent.address()));
    wait_for("the page shows four clients", LIMIT, || {
        let rows = "return document.querySelectorAll('#clients tbody tr[data-client]').length";
        (browser.ask(rows) == 4).then_some(())
    });
    assert_eq!(browser.ask("return document.getElementById('link').textContent"), "live");
    let lanes = browser.ask("return document.querySelectorAll('.lanes rect').length");
    assert!(lanes.as_u64() >= Some(4), "the history is there at once: {lanes}");

    let mut delays: Vec<Duration> = Vec::new();
    for _ in 0..5 {
        let before = switches(&agent);
        let now = wait_for("one more switch", LIMIT, || Some(switches(&agent)).filter(|now| *now > before));
        let since = Instant::now();
        wait_for("the page shows it", LIMIT, || (shown_switches(&browser) >= now).then_some(()));
        delays.push(since.elapsed());
    }
    delays.sort();
    assert!(
        delays[2] < BEHIND && delays[4] < FAR_BEHIND,
        "the page showed switches {delays:?} after the agent"
    );
    accessible(&browser);
    works_by_keyboard(&browser, &agent);
    fits_a_telephone(&browser);
    if pictures {
        // The timelines are worth a look after some turns only.
        wait_for("forty switches", LIMIT, || (switches(&agent) >= 40).then_some(()));
        write_pictures(&browser);
    }
    nothing_outside(&browser, &agent);
    for client in &mut clients {
        client.succeed();
    }
    wait_for("the page forgets clients that ended", LIMIT, || {
        (browser.ask("return document.querySelectorAll('#clients tbody tr').length") == 0).then_some(())
    });
    assert!(console(&browser).is_empty(), "{:?}", console(&browser));
    assert_eq!(browser.end(), Vec::<String>::new(), "left behind");
    assert_eq!(node.violations(), Vec::<String>::new());
}

/// What went wrong, says the console: scripts, the page's own policy, requests.
fn console(browser: &Browser) -> Vec<String> {
    let lines = browser.log("browser");
    lines
        .iter()
        .filter(|line| line["level"] != "INFO" && line["level"] != "DEBUG")
        .map(ToString::to_string)
        .collect()
}

fn nothing_outside(browser: &Browser, agent: &Agent) {
    assert_eq!(console(browser), Vec::<String>::new());
    let ours = format!("http://{}/", agent.address());
    let requests: Vec<String> = browser
        .log("performance")
        .iter()
        .filter_map(|entry| serde_json::from_str(entry["message"].as_str()?).ok())
        .filter(|entry: &serde_json::Value| entry["message"]["method"] == "Network.requestWillBeSent")
        .filter_map(|entry| Some(entry["message"]["params"]["request"]["url"].as_str()?.to_owned()))
        .filter(|url| url.starts_with("http") || url.starts_with("ws"))
        .collect();
    assert!(requests.contains(&ours), "the log of requests says nothing: {requests:?}");
    assert!(requests.iter().all(|url| url.starts_with(&ours)), "the page asked others: {requests:?}");
}

/// What a screen reader finds.
fn accessible(browser: &Browser) {
    let mut tree = browser.accessible();
    tree.retain(|(role, _)| !matches!(role.as_str(), "none" | "StaticText" | "InlineTextBox" | "cell"));
    let has = |role: &str, name: &str| tree.iter().any(|(r, n)| r == role && n.contains(name));
    for (role, name) in [
        ("heading", "GPU 0"),
        ("table", ""),
        ("columnheader", "Resident"),
        ("region", "Clients"),
        ("image", "reserve: 2 MiB"),
        ("image", "seen running"),
        ("main", ""),
        ("banner", ""),
        ("contentinfo", ""),
        ("navigation", "More of this agent"),
        ("list", "Shares of the card"),
    ] {
        assert!(has(role, name), "no {role} named {name} in {tree:?}");
    }
}

/// Tab goes through everything that can be used, what has the focus is seen to have it, and a new state takes it from
/// nothing.
fn works_by_keyboard(browser: &Browser, agent: &Agent) {
    let focused = |what: &str| browser.ask(&format!("return String(document.activeElement.{what})"));
    let outlined = "return getComputedStyle(document.activeElement).outlineStyle";
    browser.ask("document.activeElement.blur(); document.getSelection().removeAllRanges(); return 0");
    browser.press(TAB);
    assert_eq!(focused("hash"), "#main", "the first thing on the way is the link past the heading");
    browser.press(ENTER);
    assert_eq!(focused("id"), "main");
    // On a narrow screen tables are wider than their boxes.
    browser.width(360);
    browser.press(TAB);
    assert_eq!(focused("getAttribute('aria-labelledby')"), "clients-title");
    assert_eq!(browser.ask(outlined), "solid");
    let scrolled = "return document.activeElement.scrollLeft";
    browser.press(RIGHT);
    wait_for("an arrow scrolls the table", LIMIT, || (browser.ask(scrolled).as_f64()? > 0.0).then_some(()));
    let before = switches(agent);
    wait_for("the page shows more", LIMIT, || (shown_switches(browser) > before).then_some(()));
    assert_eq!(
        focused("getAttribute('aria-labelledby')"),
        "clients-title",
        "a new state took the focus away"
    );
    browser.press(TAB);
    assert_eq!(focused("getAttribute('aria-labelledby')"), "switches-title");
    browser.width(1240);
}

/// Nothing but the tables' own boxes scrolls sideways.
fn fits_a_telephone(browser: &Browser) {
    browser.width(360);
    let wide = browser.ask("return document.documentElement.scrollWidth");
    browser.width(1240);
    assert!(wide.as_u64() <= Some(360), "the page is {wide} pixels wide on a telephone of 360");
}

fn write_pictures(browser: &Browser) {
    for scheme in ["light", "dark"] {
        browser.scheme(scheme);
        picture(browser, &format!("status-{scheme}.png"));
    }
}

fn picture(browser: &Browser, name: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    std::fs::write(&file, decode(&browser.picture())).expect("a file in docs/");
    eprintln!("wrote {}", file.display());
}

/// Base 64.
fn decode(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    let group = |group: &[u8]| {
        let bits = group.iter().enumerate().fold(0, |bits, (n, v)| bits | u32::from(*v) << (18 - 6 * n));
        bits.to_be_bytes()[1..group.len()].to_vec()
    };
    digits.chunks(4).flat_map(group).collect()
}
