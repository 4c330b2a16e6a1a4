//! Cards shared by real processes: this test's executable runs itself again in a role.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use nvshare_sim_card::ticket::Kind;
use nvshare_sim_card::{BLOCK_BYTES, Cards, Config, FaultPlan, Full, Member, Progress, ShareError, Ticket};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use tempfile::TempDir;

const ROLE: &str = "NVSHARE_TEST_ROLE";
const PLACE: &str = "NVSHARE_TEST_PLACE";

fn directory() -> TempDir {
    TempDir::with_prefix_in("nvshare-card-test-", "/dev/shm").expect("a directory in /dev/shm")
}

fn join(place: &Path) -> Member {
    let config = Config { card_bytes: 32 << 20, link_bytes_per_second: 100_000_000_000, ..Config::default() };
    Cards::open(place, &config).unwrap().join(FaultPlan::default()).unwrap()
}

/// Runs this executable's `role` test in another process, until it says that it is ready.
fn another(role: &str, place: &Path) -> Child {
    with_words(role, place).0
}

/// As [`another`], with what it said before.
fn with_words(role: &str, place: &Path) -> (Child, Vec<String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "role", "--nocapture"])
        .env(ROLE, role)
        .env(PLACE, place)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let is_ready = lines.any(|line| {
        words.push(line.unwrap());
        words.last().is_some_and(|line| line.contains("ready"))
    });
    assert!(is_ready, "the other process ended early: {words:?}");
    (child, words)
}

/// Not a test of its own: what the other process does.
#[test]
fn role() {
    let (Ok(role), Some(place)) = (std::env::var(ROLE), std::env::var_os(PLACE)) else { return };
    let member = Arc::new(join(Path::new(&place)));
    match role.as_str() {
        "hold" => {
            member.charge_context(0).unwrap();
            member.create(0, 8 << 20, 0).unwrap();
        }
        "managed" => {
            let (mut range, _) = member.managed_range(8);
            member.managed_touch(0, &mut range, 0..8, nvshare_sim_card::now());
        }
        "share" => {
            // The parent reads the ticket's numbers from the line.
            let id = member.create(0, 4 << 20, 0).unwrap();
            let (_, ticket) = member.share(id, (2 << 20, 512), 0).unwrap();
            let event = member.make_event().unwrap();
            member.record(event);
            println!("memory {ticket:?}\nevent {:?}", member.event_ticket(event));
        }
        "share busily" => {
            // Most of the time this process is in the middle of something that others see.
            let theirs = std::fs::read(Path::new(&place).join("ticket")).unwrap().try_into().unwrap();
            let share = member.share_of(Kind::Memory, &theirs).unwrap();
            let own = Arc::clone(&member);
            std::thread::spawn(move || {
                loop {
                    let id = own.create(0, 4 << 20, 0).unwrap();
                    let (share, _) = own.share(id, (0, 512), 0).unwrap();
                    let event = own.make_event().unwrap();
                    let record = own.record(event);
                    own.unshare(share);
                    own.let_go(id);
                    own.reach(record);
                    own.end_event(event);
                }
            });
            std::thread::spawn(move || {
                loop {
                    let opened = member.open_share(share).unwrap();
                    member.close_share(share);
                    member.let_go(opened.handle);
                }
            });
        }
        "busy" => {
            // Half of the time this process holds the lock.
            for _ in 0..2 {
                let member = Arc::clone(&member);
                std::thread::spawn(move || {
                    loop {
                        let id = member.create(0, 4 << 20, 0).unwrap();
                        member.let_go(id);
                    }
                });
            }
        }
        _ => panic!("no role {role}"),
    }
    println!("ready");
    loop {
        std::thread::park();
    }
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn what_a_killed_process_held_is_free_again() {
    let place = directory();
    let member = join(place.path());
    let child = another("hold", place.path());
    let usage = member.usage(0);
    assert_eq!(usage.free, 20 << 20);
    assert_eq!(usage.processes, [(child.id(), 12 << 20)]);
    assert_eq!(member.create(0, 22 << 20, 0), Err(Full));
    kill(child);
    member.create(0, 32 << 20, 0).expect("all of the card");
    assert_eq!(member.usage(0).processes, [(std::process::id(), 32 << 20)]);
}

/// The one descriptor of this file that another process has, as the agent takes it.
fn taken(process: u32, name: &str) -> File {
    let numbers =
        std::fs::read_dir(format!("/proc/{process}/fd")).unwrap().flatten().map(|entry| entry.path());
    let number = numbers.filter(|path| std::fs::read_link(path).is_ok_and(|file| file.ends_with(name)));
    let [number] = &number.collect::<Vec<_>>()[..] else { panic!("one descriptor") };
    let number = number.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let process = pidfd_open(Pid::from_raw(process as i32).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_getfd(process, number, PidfdGetfdFlags::empty()).unwrap().into()
}

#[test]
fn who_takes_its_descriptor_sees_what_happens_to_managed_memory_and_keeps_it() {
    let place = directory();
    let member = join(place.path());
    let child = another("managed", place.path());
    let space = taken(child.id(), "nvidia-uvm");
    let start = rustix::fs::tell(&space).unwrap();
    let count = |counter: u64| {
        let mut bytes = [0; 8];
        space.read_exact_at(&mut bytes, start + 8 * counter).unwrap();
        u64::from_ne_bytes(bytes)
    };
    assert_eq!([1, 9].map(count), [0, 8]);
    let plain = member.create(0, 24 << 20, 0).expect("managed memory gives way");
    assert_eq!([1, 9].map(count), [8 << 20, 8]);
    member.let_go(plain);
    kill(child);
    assert_eq!(member.free_bytes(0), 24 << 20, "half of what it touched is kept");
    drop(space);
    assert_eq!(member.free_bytes(0), 32 << 20);
}

#[test]
fn a_zombie_holds_nothing() {
    let place = directory();
    let member = join(place.path());
    let mut child = another("hold", place.path());
    child.kill().unwrap();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while member.free_bytes(0) != 32 << 20 {
        assert!(std::time::Instant::now() < end, "not waited for, and still charged");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.wait().unwrap();
}

#[test]
fn the_lock_survives_holders_killed_at_any_moment() {
    let place = directory();
    let member = join(place.path());
    for _ in 0..10 {
        let child = another("busy", place.path());
        std::thread::sleep(std::time::Duration::from_millis(3));
        kill(child);
        assert_eq!(member.free_bytes(0), 32 << 20);
    }
    member.create(0, 32 << 20, 0).expect("no block was lost");
}

#[test]
fn a_descriptor_keeps_memory_alive_until_its_last_duplicate_is_closed() {
    let place = directory();
    let member = join(place.path());
    let id = member.create(0, 4 << 20, 7).unwrap();
    let descriptor = member.export(id).unwrap();
    let duplicate = descriptor.try_clone().unwrap();
    member.let_go(id);
    drop(descriptor);
    assert_eq!(member.free_bytes(0), 28 << 20);
    let imported = member.import(duplicate.as_fd()).unwrap();
    assert_eq!(member.allocation(imported).unwrap().properties, 7);
    drop(duplicate);
    assert_eq!(member.free_bytes(0), 28 << 20, "held by the import");
    member.let_go(imported);
    assert_eq!(member.free_bytes(0), 32 << 20);
}

/// The ticket that another process wrote down.
fn ticket(words: &[String], of: &str) -> Ticket {
    let line = words.iter().find_map(|line| line.split_once(of)).expect("its line").1;
    let bytes: Vec<u8> =
        line.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect();
    bytes.try_into().expect("64 bytes")
}

#[test]
fn memory_of_another_process_is_opened_by_its_ticket_and_outlives_that_process() {
    let place = directory();
    let member = join(place.path());
    let (child, words) = with_words("share", place.path());
    let memory = ticket(&words, "memory ");
    let share = member.share_of(Kind::Memory, &memory).expect("a ticket");
    assert_eq!(member.share_of(Kind::Piece, &memory), None);
    let opened = member.open_share(share).unwrap();
    assert_eq!((opened.start, opened.bytes, opened.owner.pid), (2 << 20, 512, child.id()));
    assert_eq!(member.usage(0).processes, [(child.id(), 4 << 20)], "whoever made it is charged");
    kill(child);
    assert_eq!(member.usage(0).processes, [(std::process::id(), 4 << 20)]);
    assert_eq!(member.open_share(share), Err(ShareError::Gone));
    member.close_share(share);
    member.let_go(opened.handle);
    assert_eq!(member.free_bytes(0), 32 << 20);
}

#[test]
fn nothing_is_lost_whenever_a_process_is_killed_that_shares_and_opens() {
    let place = directory();
    let member = join(place.path());
    let id = member.create(0, 2 << 20, 0).unwrap();
    let (share, ticket) = member.share(id, (0, 512), 0).unwrap();
    std::fs::write(place.path().join("ticket"), ticket).unwrap();
    for _ in 0..10 {
        let child = another("share busily", place.path());
        std::thread::sleep(std::time::Duration::from_millis(3));
        kill(child);
        assert_eq!(member.free_bytes(0), 30 << 20);
    }
    assert_eq!(member.unshare(share), 0, "the dead have nothing open");
    member.let_go(id);
    member.create(0, 32 << 20, 0).expect("no block was lost");
}

#[test]
fn an_event_of_a_process_that_is_killed_keeps_nobody_waiting() {
    let place = directory();
    let member = join(place.path());
    let (child, words) = with_words("share", place.path());
    let id = member.event_of(&ticket(&words, "event ")).expect("a ticket");
    let event = member.open_event(id).unwrap();
    let theirs = member.last_record(event).expect("it was recorded");
    assert_eq!(member.progress(theirs), Progress::Pending);
    let ours = member.record(event);
    member.reach(ours);
    assert_eq!(member.progress(ours), Progress::Over);
    kill(child);
    member.reclaim();
    assert_eq!(member.progress(theirs), Progress::Orphaned);
    assert_eq!(member.open_event(id), Err(ShareError::Gone));
}

#[test]
fn nobody_opens_what_is_its_own() {
    let place = directory();
    let member = join(place.path());
    let (share, ticket) = member.share(member.create(0, 2 << 20, 0).unwrap(), (0, 512), 0).unwrap();
    assert_eq!(member.share_of(Kind::Memory, &ticket), Some(share));
    assert_eq!(member.open_share(share), Err(ShareError::Own));
    let event = member.make_event().unwrap();
    let id = member.event_of(&member.event_ticket(event)).unwrap();
    assert_eq!(member.open_event(id), Err(ShareError::Own));
    let record = member.record(event);
    member.end_event(event);
    assert_eq!(member.progress(record), Progress::Destroyed);
}

#[test]
fn a_foreign_descriptor_is_refused() {
    let (here, there) = (directory(), directory());
    let (one, two) = (join(here.path()), join(there.path()));
    let descriptor = one.export(one.create(0, 2 << 20, 0).unwrap()).unwrap();
    assert!(two.import(descriptor.as_fd()).unwrap_err().to_string().contains("does not exist on this card"));
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    assert!(two.import(file.as_fd()).unwrap_err().to_string().contains("cuMemExportToShareableHandle"));
}

#[test]
fn later_processes_take_the_parameters_of_the_first() {
    let place = directory();
    let first = join(place.path());
    let other = Config { card_bytes: 64 << 20, cards: 2, ..Config::default() };
    let second = Cards::open(place.path(), &other).unwrap();
    assert_eq!(second.config(), first.config());
    assert_eq!(second.uuid(0), first.uuid(0));
    assert_ne!(second.uuid(0), second.uuid(1));
}

#[test]
fn cards_that_do_not_fit_the_file_system_are_refused_with_the_remedy() {
    let place = directory();
    let vast = Config { card_bytes: 1 << 40, ..Config::default() };
    let Err(error) = Cards::open(place.path(), &vast) else { panic!("a terabyte in /dev/shm") };
    assert!(error.to_string().contains("NVSHARE_SIM_CARD_BYTES"), "{error}");
}

#[test]
fn a_control_block_of_another_version_is_refused() {
    let place = directory();
    std::fs::write(place.path().join("control"), b"something else").unwrap();
    let Err(error) = Cards::open(place.path(), &Config::default()) else { panic!("opened") };
    assert!(error.to_string().contains("another version"), "{error}");
}

#[test]
fn violations_are_appended_as_lines() {
    let place = directory();
    let member = join(place.path());
    member.violation("first");
    member.violation(format_args!("second of {}", 2));
    let text = std::fs::read_to_string(place.path().join("violations")).unwrap();
    assert_eq!(text, "nvshare-sim: strict: first\nnvshare-sim: strict: second of 2\n");
}

#[test]
fn prepared_blocks_keep_their_bytes_and_stay_prepared() {
    use std::os::unix::fs::FileExt;
    let place = directory();
    let member = join(place.path());
    let id = member.create(0, 4 << 20, 0).unwrap();
    let run = member.allocation(id).unwrap().runs[0];
    let at = u64::from(run.first) * BLOCK_BYTES;
    member.memory_file(0).write_all_at(&[42; 100], at).unwrap();
    member.prepare(0, run);
    member.prepare(0, run);
    let mut bytes = [0; 101];
    member.memory_file(0).read_exact_at(&mut bytes, at).unwrap();
    assert_eq!((bytes[0], bytes[99], bytes[100]), (42, 42, 0));
}
