//! Without a fuzzer: everything in the corpus, every seed, and some thousand changes of these. `NVSHARE_FUZZ_ROUNDS` sets how
//! many changes (of each target).

use std::panic::{AssertUnwindSafe, catch_unwind};

use nvshare_fuzz::{TARGETS, Target, corpus};

/// Changes of each target's inputs unless told otherwise. All targets together take a few seconds.
const ROUNDS: u64 = 2000;
/// No input grows beyond this.
const LONGEST: usize = 4096;

/// As random as it has to be, and the same each time.
struct Dice(u64);

impl Dice {
    fn throw(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }
}

fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let kept = std::fs::read_dir(corpus(target)).into_iter().flatten().flatten();
    let mut paths: Vec<_> = kept.map(|entry| entry.path()).collect();
    paths.sort();
    let kept = paths.iter().map(|path| std::fs::read(path).expect("a file of the corpus"));
    (target.seeds)().into_iter().chain(kept).collect()
}

fn changed(inputs: &[Vec<u8>], dice: &mut Dice) -> Vec<u8> {
    const ODD: [&[u8]; 8] = [
        &[0],
        &[0xff],
        &[0x80],
        &[0x7f],
        &[0xff; 4],
        &[0xff; 8],
        &[0, 0, 0, 0x80],
        &[0xff, 0xff, 0xff, 0x7f],
    ];
    let mut bytes = inputs[dice.throw(inputs.len())].clone();
    for _ in 0..=dice.throw(4) {
        let at = dice.throw(bytes.len() + 1);
        match dice.throw(6) {
            0 if at < bytes.len() => bytes[at] ^= 1 << dice.throw(8),
            1 if at < bytes.len() => bytes[at] = dice.throw(256) as u8,
            2 => bytes.truncate(at),
            3 => {
                let odd = ODD[dice.throw(ODD.len())];
                let end = (at + odd.len()).min(bytes.len());
                bytes.splice(at.min(end)..end, odd.iter().copied());
            }
            4 => {
                let other = &inputs[dice.throw(inputs.len())];
                let from = dice.throw(other.len() + 1);
                bytes.splice(at.., other[from..].iter().copied());
            }
            _ => bytes.insert(at, dice.throw(256) as u8),
        }
    }
    bytes.truncate(LONGEST);
    bytes
}

fn knock(target: &Target, bytes: &[u8]) {
    let survived = catch_unwind(AssertUnwindSafe(|| (target.knock)(bytes)));
    assert!(survived.is_ok(), "{}: these bytes are not survived: {}", target.name, bytes.escape_ascii());
}

#[test]
fn nothing_that_reads_bytes_of_others_falls_over_them() {
    let rounds =
        std::env::var("NVSHARE_FUZZ_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS);
    std::thread::scope(|scope| {
        for target in TARGETS {
            scope.spawn(move || {
                let inputs = inputs(target);
                for input in &inputs {
                    knock(target, input);
                }
                let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
                for _ in 0..rounds {
                    knock(target, &changed(&inputs, &mut dice));
                }
            });
        }
    });
}

#[test]
fn the_corpus_is_small_and_of_targets_that_there_are() {
    let parent = corpus(&TARGETS[0]).parent().expect("a directory of corpora").to_owned();
    let mut bytes = 0;
    for directory in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = directory.file_name().into_string().expect("a name of ours");
        assert!(nvshare_fuzz::named(&name).is_some(), "there is no target {name}");
        for file in std::fs::read_dir(directory.path()).expect("a corpus").flatten() {
            bytes += file.metadata().expect("a file of the corpus").len();
        }
    }
    assert!(bytes < 1 << 20, "{bytes} bytes");
}
