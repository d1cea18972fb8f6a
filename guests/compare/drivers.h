/* Drivers for the devices that every PC has. None of them knows that it runs on pykvm, or on a hypervisor at all. */
#ifndef DRIVERS_H
#define DRIVERS_H

#include <stdint.h>

#define SECTOR 512

void uart_init(void);
void uart_write(const char *bytes, unsigned long size);

uint32_t disk_init(void); /* the disk's sectors; 0: there is none */
int disk_read(uint32_t sector, uint16_t *to); /* 0, or -1: the disk says no */

int64_t rtc_seconds(void); /* since 1970 */

#endif
