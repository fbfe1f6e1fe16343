dnl COMBA_CHECK_LINK(FLAGS, IF-IT-LINKS, IF-NOT, [INCLUDES], [STATEMENT])
AC_DEFUN([COMBA_CHECK_LINK], [
  comba_saved_CFLAGS=$CFLAGS
  CFLAGS="$CFLAGS $1"
  AC_LINK_IFELSE([AC_LANG_PROGRAM([[$4]], [[$5]])], [comba_links=yes], [comba_links=no])
  CFLAGS=$comba_saved_CFLAGS
  AS_IF([test $comba_links = yes], [$2], [$3])
])

dnl COMBA_REPORT(NAME, STATE, USE, DEBIAN-PACKAGE, [required])
dnl adds a row to the table that configure ends with. STATE is "no", "off (..)", or says what was found (a version, a path).
AC_DEFUN([COMBA_REPORT], [
  comba_state="$2"
  AS_CASE([$comba_state], [no],
    [m4_if([$5], [required], [comba_state="NOT FOUND"; missing="$missing $1"], [comba_state="off"])], [yes], [comba_state="found"])
  comba_table="$comba_table`printf '  %-15s %-27s %-20s %s' "$1" "$comba_state" "$4" "$3"`
"
])

dnl COMBA_REPORT_MODULE(VARIABLE-PREFIX, MODULE, NAME, USE, DEBIAN-PACKAGE): a required library with a pkg-config file.
AC_DEFUN([COMBA_REPORT_MODULE], [
  PKG_CHECK_MODULES([$1], [$2], [comba_found=`$PKG_CONFIG --modversion $3`], [comba_found=no])
  COMBA_REPORT([$3], [$comba_found], [$4], [$5], [required])
])

AC_DEFUN([COMBA_REPORT_PRINT], [
  printf '\n%s %s\n\n  %-15s %-27s %-20s %s\n%s\n' "$PACKAGE_NAME" "$PACKAGE_VERSION" \
    "what" "state" "Debian package" "used for" "$comba_table"
])
