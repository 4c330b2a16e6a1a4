//! Calls whose records cannot be had are counted as lost, each by how, or make their process one that is not known in full; none
//! is forgotten silently.

#![expect(unsafe_code, reason = "a child filters its system calls")]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nvshare_agent::observer::{Library, Options};
use nvshare_agent_core::observation::{Seen, What};
use nvshare_common::event::Loss;
use nvshare_common::probe::Call;
use tempfile::TempDir;

use crate::client::Client;
use crate::fake::unlike_others;
use crate::own::Own;
use crate::seen::{Observing, last_activity, last_health, named, observe, observed, of};

/// Functions that do what the words at their third argument say. Is the first one 2, they make it 1 and wait for another number;
/// while the second one is not 0, they take one from it and call themselves.
struct Obedient {
    directory: TempDir,
}

impl Obedient {
    fn new() -> Obedient {
        let directory = TempDir::with_prefix("nvshare-obedient-").unwrap();
        let mut text = format!(".data\n.p2align 2\nflag: .long 0\n.text\n.skip {}\n", unlike_others());
        for name in ["cuMemAlloc_v2", "cuMemFree_v2", "cuMemMap", "cuMemUnmap", "cuMemRelease"] {
            // Passed on to one that does the work, as in the fake.
            writeln!(
                text,
                ".text\n.globl {name}\n.type {name}, @function\n.p2align 4\n{name}:\n  \
                 cmpl $0x321cba00, flag(%rip)\n  je 2f\n  jmp *work_{name}(%rip)\n\
                 2:\n  movl $4, %eax\n  ret\n.size {name}, .-{name}\n\
                 .p2align 4\n1:\n  push %rbp\n  cmpq $2, (%rdx)\n  jne 4f\n  movq $1, (%rdx)\n\
                 3:\n  pause\n  cmpq $1, (%rdx)\n  je 3b\n\
                 4:\n  cmpq $0, 8(%rdx)\n  je 5f\n  decq 8(%rdx)\n  call {name}@PLT\n\
                 5:\n  xorl %eax, %eax\n  pop %rbp\n  ret\n\
                 .data\n.p2align 3\nwork_{name}: .quad 1b"
            )
            .unwrap();
        }
        text.push_str("\n.section .note.GNU-stack,\"\",@progbits\n");
        let source = directory.path().join("obedient.s");
        std::fs::write(&source, text).unwrap();
        let obedient = Obedient { directory };
        let done = Command::new("cc")
            .args(["-shared", "-nostdlib", "-Wl,-soname,libcuda.so.1", "-o"])
            .args([obedient.path(), source])
            .status()
            .expect("a C compiler, as Rust needs one to link");
        assert!(done.success(), "cc: {done}");
        obedient
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("libcuda.so.1")
    }
}

/// What was said of a process last: its lost records, and whether it was observed in full.
fn last_word(told: &[Seen], pid: u32) -> ([u64; Loss::COUNT], bool) {
    let word = last_activity(told, pid).expect("the process was seen");
    (word.lost, word.whole)
}

fn allocations(told: &[Seen]) -> u64 {
    observed(told).filter(|seen| matches!(seen.what, What::Allocated(..))).count() as u64
}

#[test]
fn a_call_that_made_room_for_later_ones_is_lost_and_counted() {
    /// More than are kept.
    const NESTED: u64 = 60_000;
    /// The kernel follows so many calls of a thread to their return, the outermost ones.
    const FOLLOWED: u64 = 64;
    let library = Obedient::new();
    let Some(seen) = observe(&[&library.path()]) else { return };
    let mut client = Client::start(&library.path());
    client.run(&format!("nest cuMemAlloc_v2 {}", NESTED - 1)).run("nest cuMemAlloc_v2 2");
    let pid = client.pid();
    client.end();
    assert_eq!(named(&seen.counts_of_dead(pid).application), [("alloc", NESTED + 3)].into());
    let told = seen.all();
    let (lost, _) = last_word(&told, pid);
    let unmatched = lost[Loss::Unmatched as usize];
    assert!(unmatched > 0, "{lost:?}");
    assert_eq!(allocations(&told) + lost.iter().sum::<u64>(), FOLLOWED + 3, "{lost:?}");
}

/// Keeps this thread, and those that it starts, from having system calls filtered.
fn without_filters() {
    const AT_NUMBER: u32 = 0;
    const AT_FIRST: u32 = 16;
    let instruction = |code: u32, if_true: u8, if_false: u8, value: u32| libc::sock_filter {
        code: code as u16,
        jt: if_true,
        jf: if_false,
        k: value,
    };
    let (load, equal) =
        (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
    let answer = libc::BPF_RET | libc::BPF_K;
    let mut filter = [
        instruction(load, 0, 0, AT_NUMBER),
        instruction(equal, 0, 3, libc::SYS_prctl as u32),
        instruction(load, 0, 0, AT_FIRST),
        instruction(equal, 0, 1, libc::PR_SET_SECCOMP as u32),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        instruction(answer, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: plain numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    // SAFETY: the filter lives on this stack.
    let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn where_returns_are_not_observed_each_call_whose_result_is_needed_is_a_lost_record() {
    let library = Obedient::new();
    let path = library.path();
    // On this thread alone it cannot be tried whether return probes are safe: they are done without.
    let observe = move || {
        without_filters();
        observe(&[&path])
    };
    let Some(seen) = std::thread::spawn(observe).join().unwrap() else { return };
    let problems = seen.health().problems;
    assert!(
        problems.iter().any(|why| why.contains("results of allocations are not observed")),
        "{problems:?}"
    );
    let mut client = Client::start(&library.path());
    client.run("call cuMemAlloc_v2 20 2").run("call cuMemFree_v2 7 1").run("call cuMemMap 5 1");
    let pid = client.pid();
    client.end();
    let counts = seen.counts_of_dead(pid).application;
    assert_eq!(named(&counts), [("alloc", 40), ("free", 7), ("map", 5)].into());
    let told = seen.all();
    let mut expected = [0; Loss::COUNT];
    expected[Loss::Unfollowed as usize] = 52;
    assert_eq!(last_word(&told, pid).0, expected);
    assert_eq!(allocations(&told), 0, "whether it got any is not known");
}

/// Waits until the observer says that so many functions of the library are not observed.
fn wait_for_refused(seen: &Observing, library: &Obedient, expected: usize) {
    let path = library.path().display().to_string();
    seen.wait(&format!("{expected} refused functions"), |told| {
        let health = last_health(told)?;
        let file = health.attachments.iter().find(|file| file.path.ends_with(&path))?;
        (file.refused.len() == expected).then_some(())
    });
}

#[test]
fn a_process_whose_call_was_under_way_while_its_probe_was_away_is_not_known_in_full() {
    let node = Own::new();
    let library = Obedient::new();
    let place = Library::open(&library.path()).unwrap().points;
    let place = place.iter().find(|point| point.symbol == "cuMemAlloc_v2").unwrap().offset;
    let Some(seen) = node.observe(|object| Options {
        libraries: vec![library.path()],
        sample_every: 0,
        scan_every: Duration::from_millis(200),
        ..Options::new(object)
    }) else {
        return;
    };
    let mut client = node.client(&library.path());
    let pid = client.pid();
    client.run("call cuMemAlloc_v2 3 1");
    seen.wait_for_count(pid, Call::Alloc, 3);
    assert_eq!(last_word(&seen.all(), pid), ([0; Loss::COUNT], true));
    client.run("begin cuMemAlloc_v2");
    seen.wait_for_count(pid, Call::Alloc, 4);
    let mut other = node.client(&library.path());
    other.run(&format!("patch {place}"));
    wait_for_refused(&seen, &library, 1);
    other.end();
    wait_for_refused(&seen, &library, 0);
    client.run("finish").run("call cuMemAlloc_v2 2 1");
    client.end();
    assert_eq!(named(&seen.counts_of_dead(pid).application), [("alloc", 6)].into());
    let told = seen.all();
    let (_, whole) = last_word(&told, pid);
    assert!(!whole, "what the call gave out may not have been seen");
    let of_it = of(&told, pid).filter(|what| matches!(what, What::Allocated(..)));
    assert!((5..=6).contains(&of_it.count()));
}
