/* Three devices by polling: the serial port (16550A), the disk (ATA, programmed I/O), the clock (MC146818).
 *
 * Every in8(), out8() and in16() here is a VM exit.
 */
#include "drivers.h"

#include "cpu.h"

static inline uint16_t in16(uint16_t port)
{
    uint16_t value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}

/* ---- the serial port: two exits a byte */

enum { THR = 0, DIVISOR_LOW = 0, IER = 1, DIVISOR_HIGH = 1, FCR = 2, LCR = 3, LSR = 5 }; /* offsets */
#define LCR_8_BITS 0x03
#define LCR_DIVISOR 0x80
#define FCR_ON_AND_CLEAR 0x07
#define LSR_ROOM 0x20 /* the transmitter takes a byte */

void uart_init(void)
{
    out8(PORT_COM1 + IER, 0);
    out8(PORT_COM1 + LCR, LCR_DIVISOR);
    out8(PORT_COM1 + DIVISOR_LOW, 1);
    out8(PORT_COM1 + DIVISOR_HIGH, 0);
    out8(PORT_COM1 + LCR, LCR_8_BITS);
    out8(PORT_COM1 + FCR, FCR_ON_AND_CLEAR);
}

void uart_write(const char *bytes, unsigned long size)
{
    while (size--) {
        while (!(in8(PORT_COM1 + LSR) & LSR_ROOM))
            ;
        out8(PORT_COM1 + THR, (uint8_t)*bytes++);
    }
}

/* ---- the disk: an exit for each 16 bits, and eight for the command */

#define ATA 0x1f0
enum { DATA = 0, COUNT = 2, LBA_LOW = 3, LBA_MID = 4, LBA_HIGH = 5, DEVICE = 6, STATUS = 7, COMMAND = 7 };
enum { STATUS_ERR = 0x01, STATUS_DRQ = 0x08, STATUS_BSY = 0x80 };
enum { READ_SECTORS = 0x20, IDENTIFY_DEVICE = 0xec };
#define DEVICE_LBA 0xe0
#define FLOATING 0xff /* what the status reads where there is no channel */
#define IDENTITY_SECTORS 60

static int disk_command(uint8_t command, uint32_t sector, uint16_t *to)
{
    uint8_t status;
    out8(ATA + DEVICE, (uint8_t)(DEVICE_LBA | sector >> 24));
    out8(ATA + COUNT, 1);
    out8(ATA + LBA_LOW, (uint8_t)sector);
    out8(ATA + LBA_MID, (uint8_t)(sector >> 8));
    out8(ATA + LBA_HIGH, (uint8_t)(sector >> 16));
    out8(ATA + COMMAND, command);
    do
        status = in8(ATA + STATUS);
    while (status & STATUS_BSY && status != FLOATING);
    if (status & STATUS_ERR || !(status & STATUS_DRQ))
        return -1;
    for (unsigned i = 0; i < SECTOR / 2; i++)
        to[i] = in16(ATA + DATA);
    return in8(ATA + STATUS) & STATUS_ERR ? -1 : 0;
}

uint32_t disk_init(void)
{
    static uint16_t identity[SECTOR / 2];
    if (disk_command(IDENTIFY_DEVICE, 0, identity))
        return 0;
    return identity[IDENTITY_SECTORS] | (uint32_t)identity[IDENTITY_SECTORS + 1] << 16;
}

int disk_read(uint32_t sector, uint16_t *to)
{
    return disk_command(READ_SECTORS, sector, to);
}

/* ---- the clock: two exits a register */

#define CMOS 0x70
enum { SECONDS = 0, MINUTES = 2, HOURS = 4, DAY = 7, MONTH = 8, YEAR = 9, STATUS_A = 10 };
#define UPDATE_IN_PROGRESS 0x80

static unsigned cmos(uint8_t index)
{
    out8(CMOS, index);
    return in8(CMOS + 1);
}

static int64_t decimal(unsigned bcd) /* the chip counts in decimal digits until somebody tells it not to */
{
    return (bcd >> 4) * 10 + (bcd & 15);
}

/* Days since 1970-01-01 of a day in 2000 to 2099: a year of this count begins in March. */
static int64_t days(int64_t year, int64_t month, int64_t day)
{
    if (month < 3)
        year--, month += 12;
    return year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 - 457) / 5 + day - 719469;
}

int64_t rtc_seconds(void)
{
    unsigned second, minute, hour, day, month, year;
    do {
        while (cmos(STATUS_A) & UPDATE_IN_PROGRESS)
            ;
        second = cmos(SECONDS), minute = cmos(MINUTES), hour = cmos(HOURS);
        day = cmos(DAY), month = cmos(MONTH), year = cmos(YEAR);
    } while (cmos(SECONDS) != second); /* it has moved on meanwhile */
    return ((days(2000 + decimal(year), decimal(month), decimal(day)) * 24 + decimal(hour)) * 60 + decimal(minute)) *
               60 +
           decimal(second);
}
