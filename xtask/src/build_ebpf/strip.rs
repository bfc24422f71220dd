//! Takes out of a linked object what neither the kernel nor a loader reads.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use anyhow::Context as _;
use object::build::elf::{Builder, SectionData};
use object::read::elf::ElfFile64;
use object::{Object as _, ObjectSection as _};

/// The object without DWARF. BTF, which is made of it, stays.
pub(super) fn strip(linked: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut builder = Builder::read(linked).context("the linker's output is no ELF object")?;
    for section in builder.sections.iter_mut() {
        let name = section.name.to_vec();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // The linker keeps the names of sections among those of symbols; the writer wants them apart.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the stripped object")?;
    Ok(stripped)
}

/// Names of the sections that differ between two objects.
pub(super) fn differences(kept: &[u8], fresh: &[u8]) -> anyhow::Result<Vec<String>> {
    let (kept, fresh) = (sections(kept)?, sections(fresh)?);
    let names = kept.keys().chain(fresh.keys());
    let mut different: Vec<String> =
        names.filter(|name| kept.get(*name) != fresh.get(*name)).cloned().collect();
    different.dedup();
    Ok(different)
}

fn sections(bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let elf = ElfFile64::<object::Endianness>::parse(bytes)?;
    elf.sections()
        .map(|section| Ok((section.name()?.to_owned(), section.data()?.to_vec())))
        .collect()
}
