//! The source with another module behind its door, and real processes: children that have a device open as if it were the
//! module's, taken and watched as it is done on a node.

use std::io::Write;
use std::os::fd::BorrowedFd;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use nvshare_agent_core::observation::{self, Activity, Source};
use nvshare_common::bytes::Bytes;
use nvshare_common::probe::Call;
use rustix::pipe::{PipeFlags, pipe_with};
use tempfile::TempDir;

use super::*;
use crate::observer::uvm::Uvm;

const CARD: DeviceId = DeviceId([1; 16]);
const OTHER: DeviceId = DeviceId([2; 16]);

/// One tracker that was given out.
struct Tracker {
    device: Option<DeviceId>,
    page: Arc<Page>,
    /// At its end when the tracker is closed.
    closed: OwnedFd,
}

impl Tracker {
    fn is_closed(&self) -> bool {
        rustix::io::read(&self.closed, &mut [0; 1]) == Ok(0)
    }
}

/// What stands for the module.
#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Given>>);

#[derive(Default)]
struct Given {
    trackers: Vec<Tracker>,
    /// What is answered instead.
    refuses: Option<fn() -> Refused>,
}

impl Door for Fake {
    fn knock(&self) -> io::Result<()> {
        Ok(())
    }

    fn count(
        &self,
        space: BorrowedFd<'_>,
        device: Option<DeviceId>,
    ) -> Result<(OwnedFd, Arc<Page>), Refused> {
        let mut given = self.0.lock().unwrap();
        if let Some(refuses) = given.refuses {
            return Err(refuses());
        }
        let metadata = std::fs::File::from(space.try_clone_to_owned().unwrap()).metadata().unwrap();
        assert_eq!(metadata.rdev(), rustix::fs::makedev(1, 5), "what was taken is the device");
        let (closed, tracker) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let page = Arc::new(Page::new().unwrap());
        given.trackers.push(Tracker { device, page: Arc::clone(&page), closed });
        Ok((tracker, page))
    }
}

impl Fake {
    fn trackers(&self) -> usize {
        self.0.lock().unwrap().trackers.len()
    }

    fn counts(&self, tracker: usize, counts: Counts) {
        self.0.lock().unwrap().trackers[tracker].page.set(counts);
    }

    fn is_closed(&self, tracker: usize) -> bool {
        self.0.lock().unwrap().trackers[tracker].is_closed()
    }

    /// Not at once: for a moment a child that another test has just begun has all our descriptors.
    fn wait_closed(&self, tracker: usize) {
        let until = Instant::now() + Duration::from_secs(10);
        while !self.is_closed(tracker) {
            assert!(Instant::now() < until, "it is still held");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// A node whose module is the device of zeros.
struct Node {
    fake: Fake,
    tools: Tools,
    directory: TempDir,
}

impl Node {
    fn new(cards: &[DeviceId]) -> Node {
        Node::with(cards, Held::new(None).unwrap(), None)
    }

    fn with(cards: &[DeviceId], held: Held, known: Option<Known>) -> Node {
        let directory = TempDir::with_prefix("nvshare-uvm-").unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::write(path("devices"), "Character devices:\n  1 nvidia-uvm\n").unwrap();
        std::fs::create_dir_all(path("modules/nvidia_uvm")).unwrap();
        for card in cards {
            std::fs::create_dir_all(path("cards").join(card.to_string())).unwrap();
            let information = path("cards").join(card.to_string()).join("information");
            std::fs::write(information, format!("GPU UUID: \t {card}\n")).unwrap();
        }
        let (fake, place) =
            (Fake::default(), Place::Device { devices: path("devices"), minor: 5, cards: path("cards") });
        let door = Box::new(fake.clone());
        let mut tools = Tools::with(door, "fake".into(), place, held, known, path("modules"));
        tools.look().unwrap();
        Node { fake, tools, directory }
    }

    fn read(&mut self, known: Option<Process>) -> Vec<Seen> {
        let mut tell = Vec::new();
        self.tools.read(|pid| known.filter(|known| known.pid == pid), &mut tell);
        tell
    }
}

/// A program that has the device open, until it is told to end.
struct Program(Child);

impl Program {
    fn start() -> Program {
        Program::running("exec 9</dev/zero; echo; read line")
    }

    fn running(script: &str) -> Program {
        let mut child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It says when it has come so far.
        std::io::Read::read(child.stdout.as_mut().unwrap(), &mut [0]).unwrap();
        Program(child)
    }

    fn process(&self) -> Process {
        proc::process(self.0.id()).unwrap()
    }

    fn tell(&mut self) {
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn counts(of: u64) -> Counts {
    Counts { to_device: of, to_host: 2 * of, cpu_faults: 3 * of, faults: 4 * of }
}

fn told(process: Process, device: Option<DeviceId>, of: u64) -> Seen {
    let paged = Paged { faults: 4 * of, cpu_faults: 3 * of, to_device: Bytes(of), to_host: Bytes(2 * of) };
    Seen::Process(Observation { process, what: What::Uvm(device, paged) })
}

#[test]
fn what_is_counted_of_a_process_is_told_once_and_with_its_card() {
    let (mut node, program) = (Node::new(&[CARD]), Program::start());
    let process = program.process();
    node.tools.allocated(process);
    node.tools.allocated(process);
    assert_eq!(node.fake.trackers(), 1, "one is enough");
    assert_eq!(node.read(Some(process)), []);
    node.fake.counts(0, counts(5));
    assert_eq!(node.read(None), [], "nobody knows it yet");
    assert_eq!(node.read(Some(process)), [told(process, Some(CARD), 5)]);
    assert_eq!(node.read(Some(process)), []);
    node.fake.counts(0, counts(7));
    assert_eq!(node.read(Some(process)), [told(process, Some(CARD), 2)]);
    assert!(!node.fake.is_closed(0));
    assert_eq!(node.tools.figures(), (1, 0));
}

#[test]
fn the_last_of_a_process_is_told_and_its_tracker_goes_with_it() {
    let (mut node, mut program) = (Node::new(&[CARD]), Program::start());
    let process = program.process();
    node.tools.allocated(process);
    node.fake.counts(0, counts(5));
    program.end();
    // Nobody reads: it is closed all the same.
    node.fake.wait_closed(0);
    assert_eq!(node.read(Some(process)), [told(process, Some(CARD), 5)]);
    assert_eq!(node.tools.figures(), (0, 0));
    assert_eq!(node.read(Some(process)), []);
}

#[test]
fn another_process_with_the_same_number_is_not_charged() {
    let (mut node, program) = (Node::new(&[CARD]), Program::start());
    let process = program.process();
    // As it would be if the number had been another's before.
    node.tools.allocated(Process { start: process.start - 1, ..process });
    assert_eq!(node.fake.trackers(), 0);
    node.tools.allocated(process);
    node.fake.counts(0, counts(5));
    assert_eq!(node.read(Some(Process { start: process.start + 1, ..process })), []);
    assert_eq!(node.read(Some(process)), [told(process, Some(CARD), 5)]);
}

#[test]
fn several_cards_are_told_apart_and_the_hosts_faults_are_nobodys() {
    let (mut node, program) = (Node::new(&[CARD, OTHER]), Program::start());
    let process = program.process();
    node.tools.allocated(process);
    let devices: Vec<_> = node.fake.0.lock().unwrap().trackers.iter().map(|tracker| tracker.device).collect();
    assert_eq!(devices, [None, Some(CARD), Some(OTHER)]);
    node.fake.counts(0, counts(12));
    node.fake.counts(1, counts(5));
    node.fake.counts(2, counts(7));
    let host = Paged { cpu_faults: 36, ..Paged::default() };
    let card = |device, of: u64| {
        let paged = Paged { faults: 4 * of, cpu_faults: 0, to_device: Bytes(of), to_host: Bytes(2 * of) };
        Seen::Process(Observation { process, what: What::Uvm(Some(device), paged) })
    };
    let expected =
        [Seen::Process(Observation { process, what: What::Uvm(None, host) }), card(CARD, 5), card(OTHER, 7)];
    assert_eq!(node.read(Some(process)), expected);
}

#[test]
fn who_closes_the_device_is_let_go() {
    let (mut node, mut program) = (
        Node::new(&[CARD]),
        Program::running("exec 9</dev/zero; echo; read line; exec 9<&-; echo; read line"),
    );
    let process = program.process();
    node.tools.allocated(process);
    assert_eq!((node.fake.trackers(), node.read(Some(process))), (1, vec![]));
    assert!(!node.fake.is_closed(0));
    program.tell();
    std::io::Read::read(program.0.stdout.as_mut().unwrap(), &mut [0]).unwrap();
    node.read(Some(process));
    node.fake.wait_closed(0);
    node.tools.allocated(process);
    assert_eq!(node.fake.trackers(), 1, "it has nothing to count");
}

#[test]
fn who_does_not_have_the_device_is_looked_at_once_until_the_next_look() {
    let (mut node, program) = (Node::new(&[CARD]), Program::running("echo; read line"));
    let process = program.process();
    node.tools.allocated(process);
    assert!(node.tools.without.contains(&process));
    node.tools.look().unwrap();
    assert!(node.tools.without.is_empty());
    assert_eq!((node.fake.trackers(), node.tools.figures()), (0, (0, 0)));
}

#[test]
fn who_was_there_before_and_has_no_managed_memory_is_left_alone() {
    let (mut node, program) = (Node::new(&[CARD]), Program::start());
    node.tools.found(program.0.id());
    assert_eq!(node.fake.trackers(), 0);
}

#[test]
fn a_descriptor_that_is_no_va_space_is_one_process_and_calls_that_are_unknown_are_everybodys() {
    let (mut node, program) = (Node::new(&[CARD]), Program::start());
    node.fake.0.lock().unwrap().refuses = Some(|| Refused::Status(0x16));
    node.tools.allocated(program.process());
    assert_eq!((node.tools.figures(), node.tools.look()), ((0, 1), Ok(())));
    node.fake.0.lock().unwrap().refuses =
        Some(|| Refused::Call("INIT", io::Error::from_raw_os_error(libc::EINVAL)));
    node.tools.allocated(program.process());
    let why = node.tools.look().unwrap_err();
    assert!(why.to_string().contains("INIT: Invalid argument"), "{why}");
    // Another module may answer.
    let modules = node.directory.path().join("modules");
    std::fs::create_dir(modules.join("again")).unwrap();
    std::fs::rename(modules.join("again"), modules.join("nvidia_uvm")).unwrap();
    assert_eq!(node.tools.look(), Ok(()));
}

#[test]
fn without_the_module_trackers_are_closed_and_the_reason_is_said() {
    let (mut node, program) = (Node::new(&[CARD]), Program::start());
    node.tools.allocated(program.process());
    std::fs::write(node.directory.path().join("devices"), "Character devices:\n  1 mem\n").unwrap();
    assert_eq!(node.tools.look(), Err(Why::NoModule));
    node.fake.wait_closed(0);
    node.tools.allocated(program.process());
    assert_eq!(node.fake.trackers(), 1);
}

#[test]
fn all_are_closed_with_the_source() {
    let (mut node, program) = (Node::new(&[CARD]), Program::start());
    node.tools.allocated(program.process());
    let fake = node.fake.clone();
    drop(node);
    fake.wait_closed(0);
}

#[test]
fn who_was_seen_to_allocate_managed_memory_is_counted_and_others_are_not() {
    let (node, program, other) = (Node::new(&[CARD]), Program::start(), Program::start());
    let mut uvm = Uvm {
        tools: Ok(node.tools),
        kprobes: Err("none here".to_owned()),
        source: Source::Tools,
        why: None,
        absent: false,
        looked: true,
        read_at: Instant::now(),
    };
    let activity = |process, call: Call| {
        let mut counts = Box::<observation::Counts>::default();
        counts.application[call as usize] = 1;
        let what = What::Activity(Activity { counts, ..Activity::default() });
        Seen::Process(Observation { process, what })
    };
    let (plain, managed) =
        (activity(other.process(), Call::Alloc), activity(program.process(), Call::AllocManaged));
    assert!(!uvm.seen(&[plain.clone(), managed.clone()]));
    assert_eq!((node.fake.trackers(), uvm.health().followed), (1, 1));
    uvm.absent = true;
    assert!(!uvm.seen(&[plain]) && uvm.seen(&[managed]), "one must look for the module again");
    node.fake.counts(0, counts(5));
    let mut tell = Vec::new();
    uvm.read(true, proc::process, &mut tell);
    assert_eq!(tell, [told(program.process(), Some(CARD), 5)]);
    assert!(uvm.health().observed);
}

/// The maps in the kernel, with the programs that tell of ends; `None`, said loudly, where that cannot be.
fn kernel() -> Option<(Ebpf, Known, RingBuf<MapData>)> {
    let object = nvshare_testbed::Artifacts::find().ebpf();
    if object.is_none() || !nvshare_testbed::is_root() {
        eprintln!("SKIPPED: no nvshare.bpf.o, or not root: nothing about the ends of processes was tested");
        return None;
    }
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited);
    let mut ebpf = Ebpf::load(&std::fs::read(object?).unwrap()).unwrap();
    for (name, tracepoint) in [("exec", "sched_process_exec"), ("exit", "sched_process_exit")] {
        let program: &mut aya::programs::RawTracePoint = ebpf.program_mut(name).unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach(tracepoint).unwrap();
    }
    let known = Known::try_from(ebpf.take_map("UVM_HELD").unwrap()).unwrap();
    let endings = RingBuf::try_from(ebpf.take_map("UVM_ENDINGS").unwrap()).unwrap();
    Some((ebpf, known, endings))
}

#[test]
fn the_ebpf_programs_alone_have_a_tracker_closed_when_its_process_ends() {
    let Some((_ebpf, known, endings)) = kernel() else { return };
    let mut node = Node::with(&[CARD], Held::new(Some(endings)).unwrap(), Some(known));
    let mut program = Program::start();
    let process = program.process();
    node.tools.allocated(process);
    // Without what tells of its death: only the programs are left.
    node.tools.held.forget_deaths();
    program.end();
    node.fake.wait_closed(0);
    assert_eq!(node.read(None), []);
    assert_eq!(node.tools.figures(), (0, 0));
}

#[test]
fn a_program_that_is_replaced_is_let_go_at_once() {
    let Some((_ebpf, known, endings)) = kernel() else { return };
    let mut node = Node::with(&[CARD], Held::new(Some(endings)).unwrap(), Some(known));
    let mut program = Program::running("exec 9</dev/zero; echo; read line; exec sleep 1000");
    let process = program.process();
    node.tools.allocated(process);
    program.tell();
    node.fake.wait_closed(0);
    assert!(program.0.try_wait().unwrap().is_none(), "it lives");
}
