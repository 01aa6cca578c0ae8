//! Reads the pipes that one VMM writes its output to, and keeps it in bounded files.
//!
//! A process of its own because of what the alternatives do: a VMM that writes a file itself has no
//! bound, and one that writes to a socket freezes its guest when the reader stops. So the reader
//! must live as long as the VMM, through every restart of the agent, and must never stop reading:
//! not for a full disk, not for a signal. It ends when the last writer of every pipe is gone.
//!
//! Arguments: [--resumed] --stream NAME:FD:DIR:MAX_BYTES:FILES[:head] ...
//! When all is open it says "ok" on standard output and lets go of its standard streams.

mod log;
mod stream;
mod sys;

use std::process::exit;
use stream::Stream;

const USAGE: &str = "usage: torpor-logkeeper [--resumed] --stream NAME:FD:DIR:MAX:FILES[:head] ...";
const RETRY_MILLISECONDS: i32 = 1000;

fn main() {
    sys::ignore_signals();
    sys::set_umask();
    let mut streams = match open(std::env::args().skip(1)) {
        Ok(streams) => streams,
        Err(message) => {
            eprintln!("torpor-logkeeper: {message}");
            exit(2);
        }
    };
    sys::say_ready();
    let mut buffer = [0u8; 65536];
    while streams.iter().any(Stream::is_open) {
        let timeout = if streams.iter().any(Stream::owes_a_gap) { RETRY_MILLISECONDS } else { -1 };
        let fds: Vec<i32> = streams.iter().map(|s| s.fd).collect();
        // One read for each readable pipe in turn: a flood in one does not starve the others.
        for (stream, ready) in streams.iter_mut().zip(sys::wait_readable(&fds, timeout)) {
            if ready {
                stream.drain_once(&mut buffer);
            } else if stream.owes_a_gap() {
                stream.log.mark_gap();
            }
        }
    }
}

fn open(mut arguments: impl Iterator<Item = String>) -> Result<Vec<Stream>, String> {
    let mut streams = Vec::new();
    let mut resumed = false;
    while let Some(word) = arguments.next() {
        match word.as_str() {
            "--resumed" => resumed = true,
            "--stream" => streams.push(Stream::open(&arguments.next().ok_or(USAGE)?)?),
            _ => return Err(USAGE.into()),
        }
    }
    if streams.is_empty() {
        return Err(USAGE.into());
    }
    if resumed {
        streams.iter_mut().for_each(|s| s.log.mark_resumed());
    }
    Ok(streams)
}
