SUMMARY = "Small language model service for edge devices"
LICENSE = "Apache-2.0"
LIC_FILES_CHKSUM = "file://${COMMON_LICENSE_DIR}/Apache-2.0;md5=89aea4e17d99a7cacdbeed46a0096b10"

# The files of the Debian package are installed, because a build with cargo needs Rust 1.95 and the releases of
# OpenEmbedded up to wrynose have 1.75 to 1.94.
SRC_URI = "\
    file://pilotlight_${PV}-1_arm64.deb;subdir=${BP} \
    file://trial \
    file://pilotlight-trial.service \
    file://trial.conf \
"
# scarthgap has no UNPACKDIR
UNPACKED = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}"
S = "${UNPACKED}/${BP}"

COMPATIBLE_HOST = "aarch64.*-linux"

inherit systemd useradd features_check

REQUIRED_DISTRO_FEATURES = "systemd usrmerge"

SYSTEMD_PACKAGES = "${PN} ${PN}-trial"
SYSTEMD_SERVICE:${PN} = "pilotlight.service"
SYSTEMD_SERVICE:${PN}-trial = "pilotlight-trial.service"

# a fixed number: both slots own the same files
USERADD_PACKAGES = "${PN}"
USERADD_PARAM:${PN} = "--system --uid 870 --user-group --no-create-home \
    --home-dir ${localstatedir}/lib/pilotlight --shell ${base_sbindir}/nologin pilotlight"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 -t ${D}${bindir} ${S}/usr/bin/pilotlight
    # the program looks for its libraries in ../lib/pilotlight
    install -D -m 0755 -t ${D}${nonarch_libdir}/pilotlight ${S}/usr/lib/pilotlight/*
    install -D -m 0644 -t ${D}${systemd_system_unitdir} ${S}/usr/lib/systemd/system/*
    install -D -m 0644 -t ${D}${nonarch_libdir}/tmpfiles.d ${S}/usr/lib/tmpfiles.d/pilotlight.conf
    install -D -m 0644 -t ${D}${datadir}/pilotlight ${S}/usr/share/pilotlight/mcp.schema.json
    install -D -m 0644 -t ${D}${sysconfdir}/pilotlight ${S}/etc/pilotlight/mcp.json
    install -D -m 0640 -g pilotlight -t ${D}${sysconfdir}/pilotlight ${S}/etc/pilotlight/.env

    install -D -m 0755 -t ${D}${libexecdir}/pilotlight ${UNPACKED}/trial
    install -D -m 0644 -t ${D}${systemd_system_unitdir} ${UNPACKED}/pilotlight-trial.service
    install -D -m 0644 ${UNPACKED}/trial.conf \
        ${D}${systemd_system_unitdir}/nv_update_verifier.service.d/pilotlight.conf
}

PACKAGES =+ "${PN}-trial"
FILES:${PN}-trial = "\
    ${libexecdir}/pilotlight \
    ${systemd_system_unitdir}/pilotlight-trial.service \
    ${systemd_system_unitdir}/nv_update_verifier.service.d \
"
FILES:${PN} += "\
    ${nonarch_libdir}/pilotlight \
    ${nonarch_libdir}/tmpfiles.d \
    ${systemd_system_unitdir}/pilotlight.slice \
    ${systemd_system_unitdir}/pilotlight-engine.socket \
    ${systemd_system_unitdir}/pilotlight-engine@.service \
"
CONFFILES:${PN} = "${sysconfdir}/pilotlight/mcp.json ${sysconfdir}/pilotlight/.env"

RDEPENDS:${PN} = "ca-certificates"
RDEPENDS:${PN}-trial = "${PN} tegra-redundant-boot"

# the package is stripped, and its libraries are for itself
INSANE_SKIP:${PN} = "already-stripped"
PRIVATE_LIBS:${PN} = "libllama.so* libggml*.so*"
