//! What a guest is told that was asleep or is a copy of another: the time, fresh randomness, who
//! it is now. Each effect is complete before its request is answered, and may be asked for again.

use crate::config::Config;
use crate::identity;
use crate::sys;
use crate::wire::{frame, int, key, parse, Fields};
use std::io::Result;
use std::ops::RangeInclusive;

type Parsed<'a> = [(u8, &'a [u8])];
type Lengths = RangeInclusive<usize>;

const TOKEN: Lengths = 16..=16;
const SEED: Lengths = 64..=512;
const NAME: Lengths = 1..=64;
const MACHINE_ID: Lengths = 32..=32;

/// Do what the request says. Gives the reply; an Err is why it was refused.
pub fn apply(kind: u8, payload: &[u8], config: &mut Config) -> Result<(u8, Vec<u8>)> {
    let fields = parse(payload).ok_or_else(sys::invalid)?;
    let token = field(&fields, key::TOKEN, TOKEN)?;
    let (done, reply) = match kind {
        frame::TIME => (sys::set_clock(wall(&fields)?), frame::TIME_REPLY),
        frame::RESEED => (sys::reseed(field(&fields, key::SEED, SEED)?), frame::RESEED_REPLY),
        _ => (identity::change(config, renamed(&fields, config)?), frame::IDENTITY_REPLY),
    };
    done.map(|_| (reply, Fields::default().bytes(key::TOKEN, token).0))
}

/// The first field of this name, if its length is one of these.
fn field<'a>(fields: &Parsed<'a>, name: u8, lengths: Lengths) -> Result<&'a [u8]> {
    let found = fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    found.filter(|value| lengths.contains(&value.len())).ok_or_else(sys::invalid)
}

fn wall(fields: &Parsed) -> Result<i64> {
    int(field(fields, key::WALL, 8..=8)?).filter(|ns| *ns >= 0).ok_or_else(sys::invalid)
}

/// The config with the names of the request: they end up in files and on the console.
fn renamed(fields: &Parsed, config: &Config) -> Result<Config> {
    let plain = |name, lengths| {
        let value = field(fields, name, lengths)?;
        let good = value.iter().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(b));
        good.then(|| value.to_vec()).ok_or_else(sys::invalid)
    };
    Ok(Config {
        hostname: plain(key::HOSTNAME, NAME)?,
        machine_id: plain(key::MACHINE_ID, MACHINE_ID)?,
        nonce: plain(key::NONCE, NAME)?,
        ..config.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(kind: u8, fields: Fields) {
        let mut config = Config::default();
        let err = apply(kind, &fields.0, &mut config).unwrap_err();
        assert_eq!(err.raw_os_error(), Some(22));
        assert_eq!(config, Config::default());
    }

    fn token() -> Fields {
        Fields::default().bytes(key::TOKEN, &[7; 16])
    }

    fn names(hostname: &[u8], machine_id: &[u8], nonce: &[u8]) -> Fields {
        let fields = token().bytes(key::HOSTNAME, hostname).bytes(key::MACHINE_ID, machine_id);
        fields.bytes(key::NONCE, nonce)
    }

    #[test]
    fn nothing_is_done_without_a_token_of_the_right_size() {
        for bad in [&[7u8; 15][..], &[7; 17], b""] {
            refused(frame::TIME, Fields::default().bytes(key::TOKEN, bad).int(key::WALL, 1));
        }
        refused(frame::TIME, Fields::default().int(key::WALL, 1));
        refused(frame::TIME, Fields(vec![key::TOKEN]));
    }

    #[test]
    fn a_time_before_the_epoch_or_of_another_size_is_refused() {
        refused(frame::TIME, token().int(key::WALL, -1));
        refused(frame::TIME, token().bytes(key::WALL, b"1234567"));
        refused(frame::TIME, token());
    }

    #[test]
    fn a_seed_that_is_too_short_or_too_long_is_refused() {
        for length in [0, 63, 513, 60_000] {
            refused(frame::RESEED, token().bytes(key::SEED, &vec![1; length]));
        }
        refused(frame::RESEED, token());
    }

    #[test]
    fn names_that_could_break_a_file_or_a_line_are_refused() {
        let id = [b'a'; 32];
        for name in [&b""[..], b"a\n", b"a b", b"a/b", b"\0", "\u{fc}".as_bytes(), &[b'a'; 65]] {
            refused(frame::IDENTITY, names(name, &id, b"n"));
            refused(frame::IDENTITY, names(b"h", &id, name));
        }
        refused(frame::IDENTITY, names(b"h", &id[..31], b"n"));
        refused(frame::IDENTITY, token().bytes(key::HOSTNAME, b"h"));
    }

    #[test]
    fn new_names_leave_the_rest_of_the_config_alone() {
        let config = Config { argv: vec![b"sh".to_vec()], stop_signal: 3, ..Config::default() };
        let raw = names(b"web-2.a", &[b'0'; 32], b"n_1").0;
        let new = renamed(&parse(&raw).unwrap(), &config).unwrap();
        assert_eq!((&new.hostname[..], &new.nonce[..]), (&b"web-2.a"[..], &b"n_1"[..]));
        assert_eq!(new.machine_id, [b'0'; 32]);
        assert_eq!((new.argv, new.stop_signal), (config.argv, 3));
    }
}
