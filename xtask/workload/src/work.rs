//! The work: fill, then step, verify, pause, again and again.

use std::io::BufRead;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::gpu::{Buffer, Gpu};
use crate::graph::Graph;
use crate::ipc::Opener;
use crate::options::{Memory, Options};
use crate::pattern::mix;
use crate::report::{Report, Times};
use crate::turns::Turns;

/// What a step adds to each word of the buffers that it writes.
const ADD: u64 = 0x0101_0101_0101_0101;
/// What the other process adds that opens them.
const ADD_THERE: u64 = 0x0003_0003_0003_0003;
/// Words that one sampled copy compares.
const SAMPLE: u64 = 512;

/// A buffer, and what must be in it.
struct Piece {
    buffer: Buffer,
    /// What a step over it is, where that is a graph.
    graph: Option<Graph>,
    words: u64,
    /// The number of its first word in the whole pattern.
    first: u64,
    read_only: bool,
    added: u64,
    /// The sum of its words as it was when it was filled.
    sum: u64,
}

struct Work<'a> {
    options: &'a Options,
    pieces: Vec<Piece>,
    /// One word per buffer, for what `nvshare_verify` and `nvshare_sum` find.
    results: Buffer,
    /// Who opens the buffers, too.
    opener: Option<Opener>,
    errors: u64,
    /// Behind the buffers: they must be freed before the context goes.
    gpu: Gpu,
}

/// Does it all.
pub(crate) fn run(options: &Options) -> Result<Report> {
    let start = Instant::now();
    let mut turns = options.turns.as_ref().map(|path| Turns::open(path, options.quantum)).transpose()?;
    if let Some(turns) = &mut turns {
        turns.take()?;
    }
    let mut work = Work::fill(options)?;
    let fill = start.elapsed();
    progress(options, "filled");
    if options.wait {
        std::io::stdin().lock().read_line(&mut String::new())?;
    }
    let (mut steps, mut first_steps) = (Vec::new(), Vec::new());
    let mut fastest = Duration::MAX;
    let mut iterations = 0;
    while goes_on(options, start, iterations) {
        let switched = turns.as_mut().map_or(Ok(false), Turns::take)?;
        let begin = Instant::now();
        work.step()?;
        steps.push(begin.elapsed());
        if switched {
            first_steps.push(begin.elapsed());
        }
        work.share()?;
        work.verify()?;
        fastest = fastest.min(begin.elapsed());
        iterations += 1;
        progress(options, &format!("iteration {iterations}"));
        if let Some(turns) = &mut turns {
            turns.yield_after_quantum()?;
        }
        std::thread::sleep(options.pause.after(fastest));
    }
    if let Some(turns) = &mut turns {
        turns.give()?;
    }
    work.opener.take().map_or(Ok(()), Opener::finish)?;
    let seconds = start.elapsed().as_secs_f64();
    let moved = work.bytes() * (1 + iterations * (options.passes + 1));
    Ok(Report {
        device: work.gpu.name()?,
        device_bytes: work.gpu.memory,
        bytes: work.bytes(),
        buffers: options.buffers,
        iterations,
        seconds,
        fill_seconds: fill.as_secs_f64(),
        bytes_per_second: moved as f64 / seconds,
        steps: Times::of(&steps),
        first_steps: Times::of(&first_steps),
        turns: turns.as_ref().map_or(0, |turns| turns.taken),
        switches: turns.as_ref().map_or(0, |turns| turns.switches),
        data_errors: work.errors,
    })
}

/// Whether there is to be another iteration.
fn goes_on(options: &Options, start: Instant, iterations: u64) -> bool {
    if let Some(file) = &options.until {
        return !file.exists();
    }
    options.seconds.map_or(iterations < options.iterations, |limit| start.elapsed().as_secs_f64() < limit)
}

fn progress(options: &Options, what: &str) {
    if options.progress {
        eprintln!("{what}");
    }
}

impl Work<'_> {
    fn fill(options: &Options) -> Result<Work<'_>> {
        let opener = (options.memory == Memory::Ipc).then(|| Opener::start(options)).transpose()?;
        let gpu = Gpu::open(options.device, options.queue)?;
        let results = Buffer::allocate(8 * options.buffers, options.memory)?;
        let words = (options.bytes / 8 / options.buffers).max(1);
        let read_only = (options.read_only_share * options.buffers as f64).round() as u64;
        let mut pieces = Vec::new();
        for number in 0..options.buffers {
            let buffer = Buffer::allocate(8 * words, options.memory)?;
            gpu.fill(buffer.address, words, options.seed, number * words)?;
            let (read_only, first) = (number < read_only, number * words);
            let graph = (options.memory == Memory::Graph && !read_only)
                .then(|| Graph::of_step(&gpu, buffer.address, words, ADD))
                .transpose()?;
            pieces.push(Piece { buffer, graph, words, first, read_only, added: 0, sum: 0 });
        }
        let mut work = Work { options, gpu, pieces, results, opener, errors: 0 };
        let sums = work.sums(1)?;
        for (piece, sum) in work.pieces.iter_mut().zip(sums) {
            piece.sum = sum;
        }
        Ok(work)
    }

    fn bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| 8 * piece.words).sum()
    }

    /// Computes over all of the memory, and waits for the result.
    fn step(&mut self) -> Result<()> {
        let passes = self.options.passes;
        for piece in self.pieces.iter_mut().filter(|piece| !piece.read_only) {
            for _ in 0..passes {
                match &piece.graph {
                    Some(graph) => graph.launch(&self.gpu)?,
                    None => self.gpu.step(piece.buffer.address, piece.words, ADD)?,
                }
                piece.added = piece.added.wrapping_add(ADD);
            }
            if piece.graph.is_some() {
                // What one graph allocated the next one has again.
                self.gpu.synchronize()?;
            }
        }
        let sums = self.sums(passes)?;
        for (piece, sum) in self.pieces.iter().zip(sums) {
            if piece.read_only && sum != piece.sum.wrapping_mul(passes) {
                self.errors += 1;
                eprintln!(
                    "the sum of a buffer that is only read changed: buffer at {:#x}",
                    piece.buffer.address
                );
            }
        }
        self.gpu.synchronize()
    }

    /// Lets the other process, if there is one, verify each buffer and add to it.
    fn share(&mut self) -> Result<()> {
        let Some(opener) = &mut self.opener else { return Ok(()) };
        for Piece { buffer, words, first, read_only, added, .. } in &mut self.pieces {
            let adds = if *read_only { 0 } else { ADD_THERE };
            self.errors += opener.turn(buffer.address, *words, *first, *added, adds)?;
            *added = added.wrapping_add(adds);
        }
        Ok(())
    }

    /// The sums of the buffers that are only read, `passes` times each; zero for the others.
    fn sums(&self, passes: u64) -> Result<Vec<u64>> {
        let mut sums = vec![0; self.pieces.len()];
        if self.pieces.iter().any(|piece| piece.read_only) {
            Gpu::write(self.results.address, &sums)?;
            for (piece, slot) in self.pieces.iter().zip(self.slots()).filter(|(piece, _)| piece.read_only) {
                for _ in 0..passes {
                    self.gpu.sum(piece.buffer.address, piece.words, slot)?;
                }
            }
            Gpu::read(self.results.address, &mut sums)?;
        }
        Ok(sums)
    }

    /// Every byte on the device, some places on the host.
    fn verify(&mut self) -> Result<()> {
        let mut wrong = vec![0; self.pieces.len()];
        Gpu::write(self.results.address, &wrong)?;
        for (piece, slot) in self.pieces.iter().zip(self.slots()) {
            let Piece { buffer, words, first, added, .. } = piece;
            self.gpu.verify(buffer.address, *words, self.options.seed, *first, *added, slot)?;
        }
        Gpu::read(self.results.address, &mut wrong)?;
        for (number, wrong) in wrong.into_iter().enumerate() {
            let sampled = if wrong == 0 { self.sample(number)? } else { self.explain(number)? };
            self.errors += wrong.max(sampled);
        }
        Ok(())
    }

    fn slots(&self) -> impl Iterator<Item = u64> {
        let results = self.results.address;
        (0..self.pieces.len() as u64).map(move |number| results + 8 * number)
    }

    /// Compares a few places, others each time; how many words are wrong.
    fn sample(&self, number: usize) -> Result<u64> {
        let piece = &self.pieces[number];
        let mut found = vec![0; SAMPLE.min(piece.words) as usize];
        let mut wrong = 0;
        for sample in 0..self.options.samples {
            let place = match sample {
                0 => 0,
                1 => piece.words - found.len() as u64,
                _ => mix(piece.added ^ sample, number as u64) % (piece.words - found.len() as u64 + 1),
            };
            Gpu::read(piece.buffer.address + 8 * place, &mut found)?;
            wrong += self.compare(number, place, &found);
        }
        Ok(wrong)
    }

    /// Looks at all words of a buffer that the device found wrong, to say where.
    fn explain(&self, number: usize) -> Result<u64> {
        let piece = &self.pieces[number];
        let mut wrong = 0;
        for place in (0..piece.words).step_by(1 << 20) {
            let mut found = vec![0; (piece.words - place).min(1 << 20) as usize];
            Gpu::read(piece.buffer.address + 8 * place, &mut found)?;
            wrong += self.compare(number, place, &found);
        }
        if wrong == 0 {
            eprintln!("buffer {number}: the device saw wrong words, the host sees none");
        }
        Ok(wrong)
    }

    /// How many of the words `found` at `place` are wrong; the first one is printed.
    fn compare(&self, number: usize, place: u64, found: &[u64]) -> u64 {
        let piece = &self.pieces[number];
        let expected =
            |at: usize| mix(self.options.seed, piece.first + place + at as u64).wrapping_add(piece.added);
        let wrong: Vec<usize> = (0..found.len()).filter(|&at| found[at] != expected(at)).collect();
        if let Some(&at) = wrong.first() {
            eprintln!(
                "buffer {number} at {:#x}: {} of {} words from byte {} on are wrong, the first at byte {}: {:#x}, not {:#x}",
                piece.buffer.address,
                wrong.len(),
                found.len(),
                8 * place,
                8 * (place + at as u64),
                found[at],
                expected(at)
            );
        }
        wrong.len() as u64
    }
}
