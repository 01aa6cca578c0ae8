//! Frames and fields: the bytes on the agent and report ports. Pure; `guest/wire.py` is its twin.
//!
//! frame = u32 LE length of the rest, u8 type, u32 LE nonce, payload (at most 64 KiB).
//! fields = (u8 key, u32 LE length, value)*; a whole number is an 8-byte LE two's complement.

pub const MAX_PAYLOAD: usize = 64 * 1024;
const HEAD: usize = 5; // type and nonce, counted by the length

pub const PROTOCOL: i64 = 1;

/// Frame types. 38 and up are free for what comes later.
pub mod frame {
    pub const HELLO: u8 = 1;
    pub const HELLO_REPLY: u8 = 2;
    pub const INFO: u8 = 3;
    pub const INFO_REPLY: u8 = 4;
    pub const PING: u8 = 5;
    pub const PONG: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_REPLY: u8 = 8;
    pub const REFUSED: u8 = 9;
    pub const REPORT: u8 = 16;
    pub const TIME: u8 = 32;
    pub const TIME_REPLY: u8 = 33;
    pub const RESEED: u8 = 34;
    pub const RESEED_REPLY: u8 = 35;
    pub const IDENTITY: u8 = 36;
    pub const IDENTITY_REPLY: u8 = 37;
}

/// Kinds of a REPORT.
pub mod kind {
    pub const BOOTED: i64 = 1;
    pub const STARTED: i64 = 2;
    pub const EXIT: i64 = 3;
    pub const ERROR: i64 = 4;
}

/// Keys of fields, one space for replies, reports and the config disk.
pub mod key {
    pub const KIND: u8 = 1;
    pub const PROTOCOL: u8 = 2;
    pub const KERNEL: u8 = 3;
    pub const INIT: u8 = 4;
    pub const BOOT_ID: u8 = 5;
    pub const NONCE: u8 = 6;
    pub const PID: u8 = 7;
    pub const CODE: u8 = 8;
    pub const SIGNAL: u8 = 9;
    pub const OOM: u8 = 10;
    pub const ASKED: u8 = 11;
    pub const MESSAGE: u8 = 12;
    pub const ERRNO: u8 = 13;
    pub const LOST: u8 = 14;
    pub const GRACE: u8 = 15;
    pub const HOSTNAME: u8 = 32;
    pub const MACHINE_ID: u8 = 33;
    pub const ARGV: u8 = 34;
    pub const ENV: u8 = 35;
    pub const WORKDIR: u8 = 36;
    pub const USER: u8 = 37;
    pub const STOP_TIMEOUT: u8 = 38;
    pub const STOP_SIGNAL: u8 = 39;
    pub const WALL: u8 = 48;
    pub const SEED: u8 = 49;
    pub const TOKEN: u8 = 50;
}

#[derive(Debug, PartialEq, Clone)]
pub struct Frame {
    pub kind: u8,
    pub nonce: u32,
    pub payload: Vec<u8>,
}

pub fn encode(kind: u8, nonce: u32, payload: &[u8]) -> Vec<u8> {
    let payload = &payload[..payload.len().min(MAX_PAYLOAD)];
    let mut out = Vec::with_capacity(4 + HEAD + payload.len());
    out.extend_from_slice(&((HEAD + payload.len()) as u32).to_le_bytes());
    out.push(kind);
    out.extend_from_slice(&nonce.to_le_bytes());
    out.extend_from_slice(payload);
    out
}

/// Bytes in, frames out. After a length that cannot be, everything is dropped until `reset`,
/// which the caller calls after a silence or when the host hung up.
#[derive(Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    broken: bool,
}

impl Decoder {
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        if self.broken {
            return frames;
        }
        self.buffer.extend_from_slice(bytes);
        let mut at = 0;
        while self.buffer.len() - at >= 4 {
            let length = le32(&self.buffer[at..]) as usize;
            if !(HEAD..=HEAD + MAX_PAYLOAD).contains(&length) {
                self.broken = true;
                self.buffer.clear();
                return frames;
            }
            if self.buffer.len() - at < 4 + length {
                break;
            }
            frames.push(Frame {
                kind: self.buffer[at + 4],
                nonce: le32(&self.buffer[at + 5..]),
                payload: self.buffer[at + 9..at + 4 + length].to_vec(),
            });
            at += 4 + length;
        }
        self.buffer.drain(..at);
        frames
    }

    /// True when a silence must be followed by `reset`.
    pub fn unsettled(&self) -> bool {
        self.broken || !self.buffer.is_empty()
    }

    pub fn reset(&mut self) {
        self.buffer.clear();
        self.broken = false;
    }
}

/// Four little-endian bytes; the caller has checked that they are there.
pub fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[derive(Default, Clone)]
pub struct Fields(pub Vec<u8>);

impl Fields {
    pub fn bytes(mut self, key: u8, value: &[u8]) -> Self {
        self.0.push(key);
        self.0.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.0.extend_from_slice(value);
        self
    }

    pub fn int(self, key: u8, value: i64) -> Self {
        self.bytes(key, &value.to_le_bytes())
    }
}

/// All fields in order; None when a length runs over the end.
pub fn parse(mut rest: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut fields = Vec::new();
    while !rest.is_empty() {
        if rest.len() < 5 {
            return None;
        }
        let length = le32(&rest[1..]) as usize;
        if rest.len() - 5 < length {
            return None;
        }
        fields.push((rest[0], &rest[5..5 + length]));
        rest = &rest[5 + length..];
    }
    Some(fields)
}

pub fn int(value: &[u8]) -> Option<i64> {
    let mut raw = [0u8; 8];
    if value.len() != 8 {
        return None;
    }
    raw.copy_from_slice(value);
    Some(i64::from_le_bytes(raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_split() {
        let mut stream = encode(frame::PING, 7, b"abc");
        stream.extend(encode(frame::INFO, 8, b""));
        for cut in 0..stream.len() {
            let mut decoder = Decoder::default();
            let mut frames = decoder.feed(&stream[..cut]);
            frames.extend(decoder.feed(&stream[cut..]));
            assert_eq!(frames.len(), 2);
            assert_eq!(frames[0], Frame { kind: frame::PING, nonce: 7, payload: b"abc".to_vec() });
            assert_eq!(frames[1].nonce, 8);
            assert!(!decoder.unsettled());
        }
    }

    #[test]
    fn a_bad_length_mutes_until_reset() {
        for length in [0u32, 4, (HEAD + MAX_PAYLOAD + 1) as u32, u32::MAX] {
            let mut decoder = Decoder::default();
            assert!(decoder.feed(&length.to_le_bytes()).is_empty());
            assert!(decoder.unsettled());
            assert!(decoder.feed(&encode(frame::PING, 1, b"")).is_empty());
            decoder.reset();
            assert_eq!(decoder.feed(&encode(frame::PING, 1, b"")).len(), 1);
        }
    }

    #[test]
    fn a_half_frame_is_dropped_by_reset() {
        let mut decoder = Decoder::default();
        decoder.feed(&encode(frame::PING, 1, b"abcdef")[..9]);
        assert!(decoder.unsettled());
        decoder.reset();
        assert_eq!(decoder.feed(&encode(frame::PING, 2, b"")).len(), 1);
    }

    #[test]
    fn fields_round_trip_and_cut_fields_are_refused() {
        let raw = Fields::default().bytes(1, b"x\0y").int(2, -5).bytes(1, b"").0;
        let fields = parse(&raw).unwrap();
        assert_eq!(fields[0], (1, &b"x\0y"[..]));
        assert_eq!(int(fields[1].1), Some(-5));
        assert_eq!(fields[2], (1, &b""[..]));
        for cut in 1..raw.len() {
            if ![8, 21].contains(&cut) {
                assert!(parse(&raw[..cut]).is_none(), "cut at {}", cut);
            }
        }
        assert!(int(b"123").is_none());
    }
}
