//! Tables of hosts that one list has for itself, as arrays of maps take them.
//!
//! It owns their shape. Linux 5.15 to 6.1 compare where a value might hold a timer, and say another
//! thing of a map whose types they know than of one whose they do not: the object's types are
//! known, so these tables' have to be. All that is compared is that the value is a structure.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use aya::Pod;
use aya::maps::{HashMap, Map, MapData};
use rustix::process::{Resource, Rlimit, setrlimit};
use session_common::guard::Rule;

use crate::guard::maps::NO_PREALLOC;
use crate::sys::{self, MapShape};

/// `BPF_MAP_TYPE_HASH`.
const HASH: u32 = 1;

/// `BTF_MAGIC`.
const MAGIC: u16 = 0xeb9f;

/// Bytes of `struct btf_header` and of a `struct btf_type` without members.
const HEADER_LEN: u32 = 24;
const TYPE_LEN: u32 = 12;

/// `BTF_KIND_STRUCT`, where a type has its kind.
const STRUCT: u32 = 4 << 24;

/// A table for so many hosts.
pub(super) fn create<K: Pod>(entries_max: u32) -> io::Result<HashMap<MapData, K, Rule>> {
    let (key_len, value_len) = (len_of::<K>(), len_of::<Rule>());
    let btf = sys::btf_load(&types(key_len, value_len))?;
    let flags = NO_PREALLOC;
    let shape = MapShape { kind: HASH, key_len, value_len, entries_max, flags, types: [1, 2] };
    let map = match sys::map_create(shape, btf.as_fd()) {
        // Before Linux 5.11 maps count against the limit on locked memory.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let _ = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None });
            sys::map_create(shape, btf.as_fd())
        }
        outcome => outcome,
    };
    typed(map?)
}

fn typed<K: Pod>(map: OwnedFd) -> io::Result<HashMap<MapData, K, Rule>> {
    let map = MapData::from_fd(map).map_err(io::Error::other)?;
    HashMap::try_from(Map::HashMap(map)).map_err(io::Error::other)
}

fn len_of<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("keys and values of a few bytes")
}

/// Two structures of these sizes, of which no more is said: types 1 and 2.
fn types(key_len: u32, value_len: u32) -> Vec<u8> {
    let types_len = 2 * TYPE_LEN;
    let mut blob = MAGIC.to_ne_bytes().to_vec();
    // Version, flags.
    blob.extend([1, 0]);
    // Where types and names stand, from the header's end. The one name is the empty one.
    for word in [HEADER_LEN, 0, types_len, types_len, 1] {
        blob.extend(word.to_ne_bytes());
    }
    for len in [key_len, value_len] {
        for word in [0, STRUCT, len] {
            blob.extend(word.to_ne_bytes());
        }
    }
    blob.push(0);
    blob
}

#[cfg(test)]
mod tests {
    use super::{HEADER_LEN, TYPE_LEN, types};

    #[test]
    fn the_blob_is_as_long_as_it_says() {
        assert_eq!(types(8, 16).len(), (HEADER_LEN + 2 * TYPE_LEN + 1) as usize);
    }
}
