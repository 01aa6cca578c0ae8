//! The virtio-serial ports: found by name, opened once, kept for ever (a port opens only once, so
//! nothing else in the guest can write to them), never waited for.

use crate::pump::Pump;
use crate::setup::warn;
use crate::sys::O_NONBLOCK;
use crate::wire::{Decoder, Frame};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(200);
const QUEUE: usize = 256 * 1024;

/// The ports with these names, in this order. They appear a moment after their driver; those that
/// the VMM does not have stay None.
pub fn open(names: [&str; 3]) -> [Option<File>; 3] {
    let mut found = [None, None, None];
    let start = Instant::now();
    loop {
        for (slot, name) in found.iter_mut().zip(names) {
            if slot.is_none() {
                *slot = open_one(name);
            }
        }
        if found.iter().all(Option::is_some) || start.elapsed() > PATIENCE {
            return found;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn open_one(name: &str) -> Option<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let said = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if said.trim_end() != name {
            continue;
        }
        let device = format!("/dev/{}", entry.file_name().to_string_lossy());
        let file = OpenOptions::new().read(true).write(true).custom_flags(O_NONBLOCK).open(device);
        if let Err(err) = &file {
            warn(format!("port {}: {}", name, err));
        }
        return file.ok();
    }
    None
}

/// Write what the port takes now; gives how much. A port whose host is away takes nothing.
fn write_some(mut file: &File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(err) if err.kind() == ErrorKind::Interrupted => continue,
            Err(_) => break,
        }
    }
    written
}

/// Whole frames waiting for a port. Bounded: what does not fit is dropped.
pub struct Outbox {
    pub file: File,
    queue: Vec<u8>,
}

impl Outbox {
    pub fn new(file: File) -> Self {
        Outbox { file, queue: Vec::new() }
    }

    pub fn send(&mut self, frame: &[u8]) {
        if self.queue.len() + frame.len() <= QUEUE {
            self.queue.extend_from_slice(frame);
        }
        self.flush();
    }

    pub fn flush(&mut self) {
        let written = write_some(&self.file, &self.queue);
        self.queue.drain(..written);
    }

    pub fn empty(&self) -> bool {
        self.queue.is_empty()
    }
}

/// The agent port: requests in, replies out.
pub struct Agent {
    pub out: Outbox,
    decoder: Decoder,
    heard: Instant,
}

impl Agent {
    pub fn new(file: File) -> Self {
        Agent { out: Outbox::new(file), decoder: Decoder::default(), heard: Instant::now() }
    }

    /// Everything that has arrived. A host that hung up takes its half frames with it, both ways.
    pub fn receive(&mut self) -> Vec<Frame> {
        let mut frames = Vec::new();
        let mut chunk = [0u8; 16 * 1024];
        loop {
            match (&self.out.file).read(&mut chunk) {
                Ok(0) => {
                    self.decoder.reset();
                    self.out.queue.clear();
                    return frames;
                }
                Ok(count) => {
                    self.settle(); // a silence may have passed unseen
                    self.heard = Instant::now();
                    frames.extend(self.decoder.feed(&chunk[..count]));
                }
                Err(err) if err.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return frames,
            }
        }
    }

    /// When `settle` has something to do.
    pub fn silence_ends(&self) -> Option<Instant> {
        self.decoder.unsettled().then(|| self.heard + SILENCE)
    }

    /// Drop a half frame after a silence.
    pub fn settle(&mut self) {
        if self.silence_ends().map_or(false, |end| Instant::now() >= end) {
            self.decoder.reset();
        }
    }
}

/// The log port with the workload's pipe in front of it.
pub struct Log {
    pub port: Option<File>,
    pub output: File,
    pub pump: Pump,
}

impl Log {
    /// Read one piece of output. Gives its size: 0 at the end, None when there is nothing now.
    pub fn pull(&mut self) -> Option<usize> {
        let mut chunk = [0u8; 64 * 1024];
        let count = (&self.output).read(&mut chunk).ok()?;
        self.pump.push(&chunk[..count]);
        self.flush();
        Some(count)
    }

    pub fn flush(&mut self) {
        if let Some(port) = &self.port {
            while !self.pump.pending().is_empty() {
                let written = write_some(port, self.pump.pending());
                if written == 0 {
                    break;
                }
                self.pump.consume(written);
            }
        }
    }
}
