//! The config disk: magic, u32 version, u32 length, u32 crc32, then fields. Pure; the writer is
//! `guest/configdisk.py`.

use crate::wire::{int, key, le32, parse};

pub const MAGIC: &[u8; 8] = b"TORPORCF";
pub const VERSION: u32 = 1;
pub const HEADER: usize = 20;
pub const MAX: usize = 1024 * 1024;

#[derive(Clone, Debug, PartialEq, Default)]
pub struct Config {
    pub hostname: Vec<u8>,
    pub machine_id: Vec<u8>,
    pub nonce: Vec<u8>,
    pub argv: Vec<Vec<u8>>,
    pub env: Vec<Vec<u8>>, // NAME=value, as execve takes them
    pub workdir: Vec<u8>,
    pub user: Vec<u8>,
    pub stop_timeout_ms: u64,
    pub stop_signal: i32,
}

/// The length of the payload that the header announces.
pub fn announced(header: &[u8]) -> Result<usize, String> {
    if header.len() < HEADER || &header[..8] != MAGIC {
        return Err("config disk: no magic".into());
    }
    let version = le32(&header[8..]);
    if version != VERSION {
        return Err(format!("config disk: version {}, want {}", version, VERSION));
    }
    let length = le32(&header[12..]) as usize;
    if length > MAX - HEADER {
        return Err(format!("config disk: length {} is over the bound", length));
    }
    Ok(length)
}

pub fn decode(disk: &[u8]) -> Result<Config, String> {
    let length = announced(disk)?;
    let payload = disk.get(HEADER..HEADER + length).ok_or("config disk: cut short")?;
    if crc32(payload) != le32(&disk[16..]) {
        return Err("config disk: checksum does not match".into());
    }
    let fields = parse(payload).ok_or("config disk: a field runs over the end")?;
    let mut config = Config { stop_signal: 15, ..Config::default() };
    for (name, value) in fields {
        if value.contains(&0) && !matches!(name, key::STOP_TIMEOUT | key::STOP_SIGNAL) {
            return Err(format!("config disk: field {} holds a NUL", name));
        }
        match name {
            key::HOSTNAME => config.hostname = value.to_vec(),
            key::MACHINE_ID => config.machine_id = value.to_vec(),
            key::NONCE => config.nonce = value.to_vec(),
            key::ARGV => config.argv.push(value.to_vec()),
            key::ENV => config.env.push(value.to_vec()),
            key::WORKDIR => config.workdir = value.to_vec(),
            key::USER => config.user = value.to_vec(),
            key::STOP_TIMEOUT => config.stop_timeout_ms = number(value)? as u64,
            key::STOP_SIGNAL => config.stop_signal = number(value)? as i32,
            _ => return Err(format!("config disk: unknown field {}", name)),
        }
    }
    if config.argv.is_empty() {
        return Err("config disk: no command".into());
    }
    Ok(config)
}

fn number(value: &[u8]) -> Result<i64, String> {
    int(value)
        .filter(|n| (0..=i32::MAX as i64).contains(n))
        .ok_or_else(|| "config disk: not a number".to_string())
}

/// CRC-32 as zlib has it.
pub fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg());
        }
        crc
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Fields;

    fn disk(payload: &[u8]) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        for word in [VERSION, payload.len() as u32, crc32(payload)] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(payload);
        out.resize((out.len() + 511) / 512 * 512, 0);
        out
    }

    #[test]
    fn crc_is_zlibs() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn bytes_come_back_exactly() {
        let raw = Fields::default()
            .bytes(key::ARGV, b"/bin/sh")
            .bytes(key::ARGV, b"")
            .bytes(key::ARGV, "a \"q\" 'r'\nü".as_bytes())
            .bytes(key::ENV, b"A=b=c\n")
            .bytes(key::USER, b"app:staff")
            .int(key::STOP_TIMEOUT, 5000)
            .0;
        let config = decode(&disk(&raw)).unwrap();
        assert_eq!(config.argv[1], b"");
        assert_eq!(config.argv[2], "a \"q\" 'r'\nü".as_bytes());
        assert_eq!(config.env, vec![b"A=b=c\n".to_vec()]);
        assert_eq!((config.stop_timeout_ms, config.stop_signal), (5000, 15));
    }

    #[test]
    fn damage_is_refused() {
        let good = disk(&Fields::default().bytes(key::ARGV, b"/init").0);
        for at in [0, 8, 12, 16, HEADER + 5] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(decode(&bad).is_err(), "byte {}", at);
        }
        assert!(decode(&good[..HEADER + 3]).is_err());
        assert!(decode(&disk(b"")).is_err());
        assert!(decode(&disk(&Fields::default().bytes(key::ARGV, b"a\0b").0)).is_err());
        assert!(decode(&disk(&Fields::default().bytes(key::ARGV, b"a").bytes(99, b"").0)).is_err());
    }
}
