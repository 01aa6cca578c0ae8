//! Workload output on its way to the log port: a bounded buffer that drops and owns up to it.
//! Pure: the reads and writes are the caller's.

pub const CAPACITY: usize = 256 * 1024;

/// Bytes wait here while the port is full. What does not fit is counted, and a line says so as
/// soon as half of the room is free again, so that the workload never waits for the host.
#[derive(Default)]
pub struct Pump {
    buffer: Vec<u8>,
    lost: u64,
    pub lost_in_all: u64,
    mid_line: bool,
}

impl Pump {
    pub fn push(&mut self, bytes: &[u8]) {
        if self.lost > 0 && self.buffer.len() <= CAPACITY / 2 {
            self.mark();
        }
        if self.lost > 0 || self.buffer.len() + bytes.len() > CAPACITY {
            self.lost += bytes.len() as u64;
            self.lost_in_all += bytes.len() as u64;
            return;
        }
        self.take(bytes);
    }

    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// `count` bytes of `pending` went out.
    pub fn consume(&mut self, count: usize) {
        self.buffer.drain(..count);
        if self.buffer.is_empty() && self.lost > 0 {
            self.mark();
        }
    }

    fn mark(&mut self) {
        let start = if self.mid_line { "\n" } else { "" };
        let line = format!("{}[torpor: {} bytes lost]\n", start, self.lost);
        self.lost = 0;
        self.take(line.as_bytes());
    }

    fn take(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if let Some(last) = bytes.last() {
            self.mid_line = *last != b'\n';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits_passes_unchanged() {
        let mut pump = Pump::default();
        pump.push(b"ab\n");
        pump.push(b"c");
        assert_eq!(pump.pending(), b"ab\nc");
        pump.consume(4);
        assert!(pump.pending().is_empty());
        assert_eq!(pump.lost_in_all, 0);
    }

    #[test]
    fn a_full_buffer_drops_and_the_gap_is_marked_once_with_its_size() {
        let mut pump = Pump::default();
        pump.push(&vec![b'x'; CAPACITY]);
        pump.push(b"12345");
        pump.push(b"67");
        assert_eq!(pump.pending().len(), CAPACITY);
        pump.consume(CAPACITY);
        assert_eq!(pump.pending(), b"\n[torpor: 7 bytes lost]\n");
        pump.push(b"on\n");
        assert_eq!(pump.pending(), b"\n[torpor: 7 bytes lost]\non\n");
        assert_eq!(pump.lost_in_all, 7);
    }

    #[test]
    fn the_mark_stands_between_what_was_and_what_comes() {
        let mut pump = Pump::default();
        pump.push(&vec![b'\n'; CAPACITY]);
        pump.push(b"gone");
        pump.consume(CAPACITY / 2);
        pump.push(b"new\n");
        assert!(pump.pending().ends_with(b"\n\n[torpor: 4 bytes lost]\nnew\n"));
    }

    #[test]
    fn memory_is_bounded() {
        let mut pump = Pump::default();
        for _ in 0..1000 {
            pump.push(&[b'x'; 4096]);
            assert!(pump.pending().len() <= CAPACITY + 64);
        }
    }
}
