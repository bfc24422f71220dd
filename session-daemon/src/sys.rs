//! System calls that neither aya nor rustix offers: BPF links by descriptor, object pins, a wait
//! for the kernel's readers, and flags of descriptors that nobody here owns.
//!
//! It owns the raw `bpf(2)` calls of the guard. It never decides anything: each function is one
//! call and returns what the kernel said.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::unix::AsyncFd;

pub mod datagrams;
pub mod epolls;
pub mod mapped;

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_BTF_LOAD: libc::c_int = 18;
const BPF_MAP_UPDATE_BATCH: libc::c_int = 26;
const BPF_MAP_DELETE_BATCH: libc::c_int = 27;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const BPF_F_BEFORE: u32 = 1 << 3;

const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// `SO_NETNS_COOKIE`, Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// `MEMBARRIER_CMD_GLOBAL`: returns after a grace period of the kernel's readers.
const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// Marks every descriptor above standard error close-on-exec: what whoever started this process
/// left open must not reach the one that it starts.
pub fn close_all_on_exec() -> io::Result<()> {
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let number = entry?.file_name();
        let Some(fd) = number.to_str().and_then(|number| number.parse::<libc::c_int>().ok()) else {
            continue;
        };
        if fd <= libc::STDERR_FILENO {
            continue;
        }
        // SAFETY: sets a flag of a descriptor, which takes it from no owner.
        let status = unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        let error = io::Error::last_os_error();
        // EBADF: closed since it was listed, by another thread.
        if status != 0 && error.raw_os_error() != Some(libc::EBADF) {
            return Err(error);
        }
    }
    Ok(())
}

/// Where a link hooks into a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP in the driver.
    XdpNative,
    /// XDP on socket buffers.
    XdpGeneric,
    /// tcx ingress, before every other program there.
    Tcx,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its number on this host.
    pub id: u32,
    /// The program that it runs.
    pub program_id: u32,
    /// Its device; 0 once it was detached or the device is gone.
    pub ifindex: u32,
    /// Whether it is an XDP link (else tcx).
    pub is_xdp: bool,
}

/// `BPF_LINK_CREATE`: attaches `program` to the device `ifindex` of this thread's namespace.
pub fn link_create(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
        relative_fd: u32,
        padding: u32,
        expected_revision: u64,
    }
    let (attach_type, flags) = match hook {
        Hook::XdpNative => (BPF_XDP, XDP_FLAGS_DRV_MODE),
        Hook::XdpGeneric => (BPF_XDP, XDP_FLAGS_SKB_MODE),
        Hook::Tcx => (BPF_TCX_INGRESS, BPF_F_BEFORE),
    };
    let attr = Attr {
        prog_fd: raw(program),
        target_ifindex: ifindex,
        attach_type,
        flags,
        ..Attr::default()
    };
    bpf_fd(BPF_LINK_CREATE, attr)
}

/// `BPF_LINK_UPDATE`: replaces the link's program; no packet sees neither.
pub fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let attr = Attr { link_fd: raw(link), new_prog_fd: raw(program), flags: 0, old_prog_fd: 0 };
    bpf(BPF_LINK_UPDATE, attr).map(drop)
}

/// `SO_ATTACH_BPF`: every packet for this socket is asked of `program` first; connections that a
/// listening socket accepts inherit it.
pub fn attach_filter(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let program = program.as_raw_fd();
    let len = libc::socklen_t::try_from(size_of_val(&program)).unwrap_or_default();
    // SAFETY: the option takes an int, which lives across the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            std::ptr::from_ref(&program).cast(),
            len,
        )
    };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `BPF_LINK_DETACH`: takes the program off the device although the link is still held.
pub fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, raw(link)).map(drop)
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a link. `InvalidInput` if it is of another type than ours.
pub fn link_facts(link: BorrowedFd<'_>) -> io::Result<LinkFacts> {
    #[repr(C, align(8))]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        prog_id: u32,
        padding: u32,
        ifindex: u32,
        rest: [u32; 11],
    }
    let mut info = Info::default();
    object_info(link, &mut info)?;
    let is_xdp = match info.kind {
        BPF_LINK_TYPE_XDP => true,
        BPF_LINK_TYPE_TCX => false,
        _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    Ok(LinkFacts { id: info.id, program_id: info.prog_id, ifindex: info.ifindex, is_xdp })
}

/// `BPF_OBJ_GET_INFO_BY_FD` of a program: its number and name.
pub fn program_facts(program: BorrowedFd<'_>) -> io::Result<(u32, String)> {
    // The head of `struct bpf_prog_info`; the name is at byte 64.
    #[repr(C, align(8))]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: [u8; 8],
        before_name: [u32; 12],
        name: [u8; 16],
    }
    let mut info = Info::default();
    object_info(program, &mut info)?;
    let name = info.name.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok((info.id, String::from_utf8_lossy(name).into_owned()))
}

/// `BPF_PROG_GET_FD_BY_ID`; needs CAP_SYS_ADMIN.
pub fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    // start id, next id, open flags.
    bpf_fd(BPF_PROG_GET_FD_BY_ID, [id, 0, 0])
}

/// `BPF_PROG_QUERY`: numbers of the programs at a device's tcx ingress, in the order in which they
/// are run. Linux 6.6.
pub fn tcx_programs(ifindex: u32) -> io::Result<Vec<u32>> {
    /// `BPF_MPROG_MAX`: a hook takes no more.
    const PROGRAMS_MAX: usize = 64;
    #[repr(C)]
    struct Attr {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        padding: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut ids = vec![0_u32; PROGRAMS_MAX];
    let mut attr = Attr {
        target_ifindex: ifindex,
        attach_type: BPF_TCX_INGRESS,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        count: PROGRAMS_MAX as u32,
        padding: 0,
        prog_attach_flags: 0,
        link_ids: 0,
        link_attach_flags: 0,
        revision: 0,
    };
    bpf_in_out(BPF_PROG_QUERY, &mut attr)?;
    ids.truncate(attr.count as usize);
    Ok(ids)
}

/// `BPF_OBJ_PIN`: gives the object a name in a bpffs. `AlreadyExists` if the name is taken.
pub fn object_pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, ObjectAttr::new(&path, raw(object))).map(drop)
}

/// `BPF_OBJ_GET`: opens a pinned object.
pub fn object_open(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf_fd(BPF_OBJ_GET, ObjectAttr::new(&path, 0))
}

/// `BPF_MAP_UPDATE_ELEM` of an array of maps: puts a map at a place. The kernel refuses one that is
/// of another shape than those for which the array was made.
pub fn map_set_inner(map: BorrowedFd<'_>, place: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    let inner = raw(inner);
    let (key, value) = ((&raw const place) as u64, (&raw const inner) as u64);
    let attr = ElementAttr { map_fd: raw(map), padding: 0, key, value, flags: 0 };
    bpf(BPF_MAP_UPDATE_ELEM, attr).map(drop)
}

/// `BPF_BTF_LOAD`: tells the kernel of the types that `blob` describes.
pub fn btf_load(blob: &[u8]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        btf: u64,
        log_buf: u64,
        btf_size: u32,
        log_size: u32,
        log_level: u32,
        log_true_size: u32,
    }
    let btf_size = u32::try_from(blob.len()).unwrap_or(u32::MAX);
    bpf_fd(BPF_BTF_LOAD, Attr { btf: blob.as_ptr() as u64, btf_size, ..Attr::default() })
}

/// What a map is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// `BPF_MAP_TYPE_…`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// Bytes of a value.
    pub value_len: u32,
    /// Most keys.
    pub entries_max: u32,
    /// `BPF_F_…`.
    pub flags: u32,
    /// Numbers of the key's and the value's type.
    pub types: [u32; 2],
}

/// `BPF_MAP_CREATE` of a map whose types stand in `btf`.
pub fn map_create(shape: MapShape, btf: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        shape: [u32; 5],
        inner_map_fd: u32,
        numa_node: u32,
        name: [u8; 16],
        ifindex: u32,
        btf_fd: u32,
        types: [u32; 2],
    }
    let MapShape { kind, key_len, value_len, entries_max, flags, types } = shape;
    let attr = Attr {
        shape: [kind, key_len, value_len, entries_max, flags],
        inner_map_fd: 0,
        numa_node: 0,
        name: [0; 16],
        ifindex: 0,
        btf_fd: raw(btf),
        types,
    };
    bpf_fd(BPF_MAP_CREATE, attr)
}

/// `BPF_MAP_DELETE_ELEM`: removes one key.
pub fn map_delete<K: Copy>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let key = std::ptr::from_ref(key) as u64;
    let attr = ElementAttr { map_fd: raw(map), padding: 0, key, value: 0, flags: 0 };
    bpf(BPF_MAP_DELETE_ELEM, attr).map(drop)
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `BPF_MAP_UPDATE_BATCH`: writes all pairs in order. Returns how many were written beside the
/// error that stopped it; not every map type and kernel has it.
pub fn map_update_batch<K: Copy, V: Copy>(
    map: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> (usize, io::Result<()>) {
    assert_eq!(keys.len(), values.len(), "one value a key");
    map_batch(BPF_MAP_UPDATE_BATCH, map, keys, values.as_ptr() as u64)
}

/// `BPF_MAP_DELETE_BATCH`: removes all keys in order. Returns as [`map_update_batch`] does; a key
/// that is absent stops it.
pub fn map_delete_batch<K: Copy>(map: BorrowedFd<'_>, keys: &[K]) -> (usize, io::Result<()>) {
    map_batch(BPF_MAP_DELETE_BATCH, map, keys, 0)
}

fn map_batch<K: Copy>(
    command: libc::c_int,
    map: BorrowedFd<'_>,
    keys: &[K],
    values: u64,
) -> (usize, io::Result<()>) {
    #[repr(C)]
    struct Attr {
        in_batch: u64,
        out_batch: u64,
        keys: u64,
        values: u64,
        count: u32,
        map_fd: u32,
        elem_flags: u64,
        flags: u64,
    }
    let count = u32::try_from(keys.len()).unwrap_or(u32::MAX);
    let keys = keys.as_ptr() as u64;
    let map_fd = raw(map);
    let mut attr =
        Attr { in_batch: 0, out_batch: 0, keys, values, count, map_fd, elem_flags: 0, flags: 0 };
    let outcome = bpf_in_out(command, &mut attr).map(drop);
    // The kernel stores the count only once it has begun: a count left as it was beside an error
    // means that nothing was done.
    let done = if outcome.is_err() && attr.count == count { 0 } else { attr.count };
    (done as usize, outcome)
}

/// The number of a socket's network namespace, never used again until the next boot. Linux 5.14.
pub fn namespace_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` outlive the call, and `len` is the size of `cookie`.
    let status = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if status == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Returns when every program run that began before the call has ended.
pub fn wait_for_readers() -> io::Result<()> {
    // SAFETY: takes no pointer.
    let status = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `descriptor` for waiting in tokio; needs its runtime.
pub fn async_fd(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, always returns the same descriptor, and moves into the
    // result, which keeps it open.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

#[repr(C)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

impl ObjectAttr {
    fn new(path: &CString, bpf_fd: u32) -> Self {
        Self { pathname: path.as_ptr() as u64, bpf_fd, file_flags: 0 }
    }
}

fn object_info<T>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    let info_len = u32::try_from(size_of::<T>()).expect("structures of a few bytes");
    let attr = Attr { bpf_fd: raw(object), info_len, info: std::ptr::from_mut(info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, attr).map(drop)
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor is not negative")
}

fn bpf_fd<T>(command: libc::c_int, attr: T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    // SAFETY: the kernel has just made this descriptor for the caller (commands that end here
    // return one), and nobody else knows it. It is close-on-exec, as all of `bpf(2)` are.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, mut attr: T) -> io::Result<libc::c_int> {
    bpf_in_out(command, &mut attr)
}

fn bpf_in_out<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is a `repr(C)` head of `union bpf_attr` without padding, valid for its size,
    // and the buffers that its addresses name are borrowed by the caller for the whole call.
    let status =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(libc::c_int::try_from(status).expect("a descriptor or zero"))
}
