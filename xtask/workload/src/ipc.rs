//! Memory shared by CUDA IPC: a process of the workload's own opens its buffers, one at a time and in turns with it, and closes
//! each again, so that memory is shared and is not between times.
//!
//! They talk over the other process's standard input and output: a line with a [`Turn`] there, a line with a count back.

#![expect(unsafe_code, reason = "the driver is called")]

use std::ffi::c_char;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use cudarc::driver::sys::{self, CUdeviceptr, CUipcMem_flags_enum, CUipcMemHandle};
use serde::{Deserialize, Serialize};

use crate::gpu::{Buffer, Gpu};
use crate::options::{Memory, Options};

/// A buffer, what must be in it, and what to add to each of its words.
#[derive(Serialize, Deserialize)]
struct Turn {
    handle: Vec<u8>,
    words: u64,
    seed: u64,
    first: u64,
    added: u64,
    adds: u64,
}

/// The other process, as the owner of the buffers has it.
pub(crate) struct Opener {
    child: Child,
    answers: Lines<BufReader<ChildStdout>>,
    seed: u64,
}

impl Opener {
    /// Starts it.
    pub(crate) fn start(options: &Options) -> Result<Opener> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--opener", "--device", &options.device.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let answers = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        Ok(Opener { child, answers, seed: options.seed })
    }

    /// Lets it open the buffer at `at`, of which nothing is under way, verify it, add `adds` and close it. How many words it
    /// found wrong.
    pub(crate) fn turn(
        &mut self,
        at: CUdeviceptr,
        words: u64,
        first: u64,
        added: u64,
        adds: u64,
    ) -> Result<u64> {
        let mut handle = CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: a place for the answer, and a live buffer.
        unsafe { sys::cuIpcGetMemHandle(&raw mut handle, at).result() }
            .context("a buffer cannot be shared")?;
        let handle = handle.reserved.iter().map(|byte| *byte as u8).collect();
        let turn = Turn { handle, words, seed: self.seed, first, added, adds };
        let line = serde_json::to_string(&turn)? + "\n";
        let input = self.child.stdin.as_mut().context("a pipe")?;
        // Where nobody reads there is no answer either.
        let _ = input.write_all(line.as_bytes());
        match self.answers.next() {
            Some(answer) => Ok(answer?.parse()?),
            None => bail!("the process that opens the buffers ended badly: {}", self.child.wait()?),
        }
    }

    /// Lets it end.
    pub(crate) fn finish(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait()?;
        ensure!(status.success(), "the process that opens the buffers ended badly: {status}");
        Ok(())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Is the other process: does what each line says, until there is none.
pub(crate) fn serve(device: i32) -> Result<()> {
    let gpu = Gpu::open(device, 0)?;
    let result = Buffer::allocate(8, Memory::Device)?;
    for line in std::io::stdin().lock().lines() {
        let turn: Turn = serde_json::from_str(&line?)?;
        println!("{}", turn.take(&gpu, &result)?);
    }
    Ok(())
}

impl Turn {
    fn take(&self, gpu: &Gpu, result: &Buffer) -> Result<u64> {
        let opened = Opened::open(&self.handle)?;
        let mut wrong = [0];
        Gpu::write(result.address, &wrong)?;
        gpu.verify(opened.0, self.words, self.seed, self.first, self.added, result.address)?;
        Gpu::read(result.address, &mut wrong)?;
        if self.adds != 0 {
            gpu.step(opened.0, self.words, self.adds)?;
        }
        gpu.synchronize()?;
        opened.close()?;
        if wrong != [0] {
            eprintln!("who opened the buffer with word {} found {} words wrong", self.first, wrong[0]);
        }
        Ok(wrong[0])
    }
}

/// A buffer of the other process.
struct Opened(CUdeviceptr);

impl Opened {
    fn open(handle: &[u8]) -> Result<Opened> {
        let bytes: [u8; 64] = handle.try_into().context("a handle of 64 bytes")?;
        let handle = CUipcMemHandle { reserved: bytes.map(|byte| byte as c_char) };
        let flags = CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS;
        let mut address = 0;
        // SAFETY: a place for the answer; the owner keeps the buffer until it has ours.
        unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, flags as u32).result() }
            .context("a buffer cannot be opened")?;
        Ok(Opened(address))
    }

    fn close(self) -> Result<()> {
        // SAFETY: it was opened once, and no work over it is under way.
        unsafe { sys::cuIpcCloseMemHandle(self.0).result() }.context("a buffer cannot be closed")
    }
}
